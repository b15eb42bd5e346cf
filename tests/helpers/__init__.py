"""What tests share: tiny models, made-up files, an invented run, a hub of one's own."""
