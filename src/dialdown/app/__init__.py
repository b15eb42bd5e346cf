"""The app: a study, an edited model or any model to play with in the browser (`dialdown app`).

What is shown is made by plain functions on values (`source`, `edits`, `words`, `neurons`, `texts`,
`points`); `loading` loads the models and `desk` holds them; the modules that end in `_tab`, `chart`
and `server` are the Gradio around them. Nothing but `loading` imports torch before a model is asked
for, so that the page is there at once.
"""
