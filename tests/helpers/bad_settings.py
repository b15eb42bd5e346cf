"""Settings and arguments that cannot be: see `bad_inputs`."""

from __future__ import annotations

from collections.abc import Iterator

from helpers.bad_inputs import DEEP, Arguments, Case, Inputs, sets

# Assignments -> words.
SETTINGS: tuple[tuple[str, str], ...] = (
    ("seed", "KEY=VALUE"),
    ("=3", "Unknown setting"),
    ("sed=3", "did you mean 'seed'"),
    ("zzz=3", "known are"),
    ("dpo.learnin_rate=1", "dpo.learnin_rate.*did you mean 'dpo.learning_rate'"),
    ("learning_rate=1", "did you mean 'dpo.learning_rate'"),
    ("dpo_beta=1", "did you mean 'dpo.beta'"),
    ("evaluate.count=1", "evaluate.*did you mean 'evaluation'"),
    ("dpo..beta=1", "Unknown setting"),
    ("dpo.beta.x=1", "dpo.beta"),
    ("seed.x=1", "seed"),
    ("dpo.seed=1", "set seed"),
    ("dpo=1", "is a section"),
    ("dpo=1|dpo.beta=2", "is the section of dpo.beta too"),
    ("dpo.beta=2|dpo=1", "is a section"),
    ("dpo=[1]", "is a section"),
    ("dpo={betta=1}", "did you mean 'dpo.beta'"),
    ("seed=abc", "seed = 'abc'"),
    ("seed=-1", "seed = '-1'"),
    ("seed=1.5", "seed = '1.5'"),
    ("seed=nan", "seed = 'nan'"),
    ("seed=4294967296", "out of range"),
    ("seed=" + "9" * 5000, "seed"),
    ("seed=[1]", "seed"),
    ("seed=", "seed"),
    ("workers=0", "workers.*0"),
    ("workers=many", "workers = 'many'"),
    ("protocols=strikt", "protocols"),
    ("protocols=[]", "protocols"),
    ("protocols=strict,strict", "names 'strict' twice"),
    ('protocols=["strict", 3]', "protocols"),
    ("protocols=[strict", "protocols"),
    ("dtype=float8", "dtype = 'float8'"),
    ("device=cuda:99", "device 'cuda:99' cannot be used"),
    ("device=toaster", "device 'toaster' cannot be used"),
    ("device=mps", "device 'mps'"),
    ("template=chats", "template = 'chats'"),
    ("template=", "template"),
    ("concept=", "concept is blank"),
    ("concept=a\nb", "line break"),
    ("concept=a\x1b[31m", "control character"),
    ('concept="a\\nmodel = b"', "line break"),
    ("concept=\udcff", "half of a character"),
    ("model=", "model is blank"),
    ("tuned= ", "tuned is blank"),
    ("evaluation.prompts=", "evaluation.prompts is blank"),
    ('evaluation.prompts="a\\u0000.txt"', "control character"),
    ("evaluation.count=0", "evaluation.count"),
    ("evaluation.count=1e3", "evaluation.count"),
    ("evaluation.count=15", "evaluation.prompts and evaluation.count: "),
    ("evaluation.count=9999999999", "out of range"),
    ("evaluation.batch_size=0", "evaluation.batch_size.*0"),
    ("evaluation.batch_size=true", "evaluation.batch_size"),
    ("evaluation.window=1", "evaluation.window"),
    ("evaluation.window=97", "evaluation.window to 96"),
    (
        "evaluation.window=90|evaluation.kl_windows=9|evaluation.max_windows=9",
        "evaluation.kl_windows",
    ),
    ("evaluation.max_new_tokens=92", "evaluation.max_new_tokens"),
    ("evaluation.max_new_tokens=0", "evaluation.max_new_tokens"),
    ("evaluation.pairs_count=5", "evaluation.pairs_count"),
    ("evaluation.judge=zzz", "no toxicity scorer 'zzz'"),
    ("evaluation.judge=embedded:ngrm", "did you mean 'embedded:ngram'"),
    ("evaluation.pair_scorer=embedded:zzz", "no toxicity scorer"),
    ("evaluation.judge=/none/here#toxic", "evaluation.judge: .*could not be loaded"),
    (
        "evaluation.judge=embedded:ngram|evaluation.pair_scorer=embedded:ngram",
        "would judge the pairs it made",
    ),
    ("evaluation.judge=probe|protocols=paper", "add strict to protocols"),
    ("interventions.alpha=1.5", "interventions.alpha.*1.5"),
    ("interventions.alpha=nan", "interventions.alpha"),
    ("interventions.control_seeds=4", "interventions.control_seeds"),
    ("interventions.ordering=random", "interventions.ordering"),
    ("interventions.families=edits,zzz", "interventions.families"),
    ("interventions.steering_strength=inf", "interventions.steering_strength"),
    ("front.count=11", "lower front.count"),
    ("front.count=-1", "front.count"),
    ("front.gains=0.5,0", "front.gains"),
    ("front.gains=a", "front.gains"),
    ("pairs.count=0", "count = 0"),
    ("pairs.count=61", "pairs.count"),
    ("pairs.margin=nan", "margin"),
    ("pairs.margin=inf", "margin"),
    ("pairs.temperature=0", "temperature.*0"),
    ("pairs.temperature=nan", "temperature"),
    ("pairs.top_k=0", "top_k.*0"),
    ("pairs.sampled=0|pairs.steered=1", "two candidates"),
    ("pairs.greedy=perhaps", "pairs.greedy"),
    ("pairs.max_new_tokens=92", "pairs.max_new_tokens"),
    ("dpo.beta=-1", "beta"),
    ("dpo.beta=nan", "beta"),
    ("dpo.kl_weight=-1", "kl_weight"),
    ("dpo.optimizer=sgd", "optimizer"),
    ("dpo.optimizer=natural", "natural gradient"),
    ("dpo.kl_direction=both", "kl_direction"),
    ("dpo.max_steps=0", "max_steps"),
    ("gains.damping=-1", "damping"),
    ("gains.own_kl_weight=inf", "own_kl_weight"),
    ("probe.count=0", "probe.count"),
    ("probe.count=62", "probe.texts and probe.count: 31 were"),
    ("probe.max_tokens=97", "lower probe.max_tokens"),
    ("probe.max_words=0", "probe.max_words"),
    ("probe.max_words=1", "There are no"),
    ("probe.positive=the|probe.negative=The", "on both sides"),
    ("probe.positive=[]", "at least one positive"),
    ("probe.positive=[1]", "probe.positive"),
    ('probe.positive=[" "]', "probe.positive is blank"),
    ("token_judge=zzz", "no toxicity scorer"),
    ("token_judge=openai:", "names no model"),
    ("token_judge=openai:gpt@ftp://x", "plain address|names no model|needs a key"),
    ("detox.max_kl=0", "detox.max_kl"),
    ("revision=a\tb", "control character"),
)
# What a file of settings holds -> words.
FILES: tuple[tuple[str, bytes, str], ...] = (
    ("no TOML", b"seed 3", "not valid TOML"),
    ("Latin-1", "concept = 'é'".encode("latin-1"), "cannot be read"),
    ("zero bytes", "seed = 3".encode("utf-16-le"), "zero bytes"),
    ("a key twice", b"seed = 1\nseed = 2", "not valid TOML"),
    ("deep lists", b"seed = " + DEEP, "nested too deeply|not valid TOML"),
    ("5000 digits", b"seed = " + b"9" * 5000, "not valid TOML"),
    ("nan", b"[pairs]\nmargin = nan", "margin"),
    ("a list of sections", b"[[dpo]]\nbeta = 1", "is a section"),
    ("a section as value", b"dpo = 1", "is a section"),
    ("a value as section", b"[seed]\nx = 1", "seed"),
    ("a digits revision", b"revision = 1234567", "revision"),
    ("a date", b"concept = 2020-01-01", "concept"),
    ("a line break", b'concept = """a\nb"""', "line break"),
    ("an unknown key", b"[dpo]\nbetta = 1", "did you mean 'dpo.beta'"),
    ("an escape in a key", b'"\\u001b[31mseed" = 1', "Unknown setting"),
)
VARIABLES: tuple[tuple[str, str, str], ...] = (
    ("DIALDOWN_SED", "3", "environment variable DIALDOWN_SED: did you mean 'seed'"),
    (
        "DIALDOWN_DPO__BETTA",
        "1",
        "environment variable DIALDOWN_DPO__BETTA: did you mean 'dpo.beta'",
    ),
    ("DIALDOWN_DPO_BETA", "1", "did you mean 'dpo.beta'"),
    ("dialdown_dpo__betta", "1", "did you mean 'dpo.beta'"),
    ("DIALDOWN__SEED", "1", "DIALDOWN__SEED: did you mean 'seed'"),
    ("DIALDOWN_DPO", "1", "is a section"),
    ("DIALDOWN_DPO__SEED", "1", "set seed"),
    ("DIALDOWN_SEED", "three", "seed = 'three'"),
    ("DIALDOWN_PROTOCOLS", "strikt", "protocols"),
    ("DIALDOWN_CONCEPT", "a\nb", "line break"),
    ("DIALDOWN_CONCEPT", "a\udcff", "half of a character"),
    ("DIALDOWN_WORKERS", "0", "workers"),
)


def setting_cases() -> Iterator[Case]:
    """Settings from flags, files and variables."""
    for text, words in SETTINGS:
        name = text if len(text) < 60 else f"{text[:20]}..."
        yield Case(f"--set {name!a}", lambda i, text=text: i.command(*text.split("|")), words)
    for name, content, words in FILES:

        def build(inputs: Inputs, content: bytes = content) -> Arguments:
            (inputs.root / "mine.toml").write_bytes(content)
            return ["run", "mine.toml", "--out", "out"]

        yield Case(f"a file of settings, {name}", build, words)
    yield Case(
        "a folder of settings", lambda i: ["run", str(i.model), "--out", "out"], "is a folder"
    )
    yield Case(
        "no file of settings",
        lambda i: ["run", "none.toml", "--out", "out"],
        "none.toml does not exist",
    )
    yield Case(
        "a preset",
        lambda i: ["run", str(i.study), "--preset", "demmo"],
        "demmo.*did you mean 'demo'\\?$",
    )
    for name, value, words in VARIABLES:
        yield Case(
            f"{name}={value!a}",
            lambda i: ["run", str(i.study), "--out", "out"],
            words,
            ((name, value),),
        )


def commands() -> Iterator[Case]:
    """Arguments of the commands."""
    for name, arguments, words in (
        ("no command", ["zzz"], "No such command"),
        ("an unknown option", ["run", "--zzz"], "No such option"),
        ("a seed in words", ["run", "--seed", "three"], "Invalid value"),
        ("detox without a folder", ["detox", "model"], "Missing option"),
        (
            "a strength in words",
            ["apply", "edit", "--out", "o", "--strength", "much"],
            "Invalid value",
        ),
    ):
        yield Case(name, lambda i, arguments=arguments: arguments, words)
    for name, arguments, words in (
        (
            "an unknown model",
            ["--model", "embedded:gpt"],
            "did you mean|known are 'gemma-3-270m', 'smollm2-135m'",
        ),
        ("a misspelt model", ["--model", "embedded:smolm2-135m"], "did you mean 'smollm2-135m'"),
        ("a data set as model", ["--model", "embedded:comments"], "no embedded model"),
        (
            "a missing model",
            ["--model", "/none/here"],
            "'/none/here' (could not be loaded|does not exist)",
        ),
        ("a file as model", ["--model", "STUDY"], "could not be loaded|is a file|not a folder"),
        ("an empty folder as model", ["--model", "EMPTY"], "config.json"),
        ("a negative seed", ["--seed", "-1"], "seed.*-1"),
        ("a missing tuned model", ["--tuned", "/none/here"], "tuned"),
        ("an empty folder as tuned model", ["--tuned", "EMPTY"], "tuned|config.json"),
    ):

        def build(inputs: Inputs, arguments: Arguments = arguments) -> Arguments:
            (inputs.root / "empty").mkdir()
            places = {"STUDY": str(inputs.study), "EMPTY": str(inputs.root / "empty")}
            return [*inputs.command(), *(places.get(word, word) for word in arguments)]

        yield Case(name, build, words)
    for name, arguments, words in (
        *(
            (
                f"two dials of {way} with strength {strength}",
                ["--method", way, "--strength", strength, "--max-kl", "0.1"],
                "pass one of them",
            )
            for way in ("gains", "rank_one", "step", "labels")
            for strength in ("0.5", "1.0")
        ),
        (
            "a dial beside another in the settings",
            ["--strength", "0.5", *sets("detox.max_kl=0.1")],
            "pass one of them",
        ),
        ("two methods", ["--method", "gains", "--no-training"], "--no-training is --method step"),
        ("an unknown method", ["--method", "rank_two"], "detox.method = 'rank_two' is not valid"),
        ("a strength of 0", ["--strength", "0"], "detox.strength"),
        ("a strength that is none", ["--strength", "nan"], "detox.strength"),
        ("a negative budget", ["--max-kl", "-1"], "detox.max_kl"),
        ("an infinite budget", ["--max-ppl-increase", "inf"], "detox.max_ppl_increase"),
        ("the paper protocol alone", sets("protocols=paper"), "add strict"),
        ("a tuned model", sets("tuned=MODEL"), "leave tuned out"),
        (
            "too few prompts",
            sets("evaluation.count=15"),
            "evaluation.prompts and evaluation.count: ",
        ),
        ("no neutral text", sets("evaluation.pairs_count=4"), "lower evaluation.pairs_count"),
    ):
        yield Case(
            f"detox, {name}",
            lambda i, a=arguments: [
                "detox",
                str(i.model),
                "--config",
                str(i.study),
                "--out",
                "made",
                "--no-verify",
                *(word.replace("MODEL", str(i.model)) for word in a),
            ],
            words,
        )


CASES: tuple[Case, ...] = (*setting_cases(), *commands())
