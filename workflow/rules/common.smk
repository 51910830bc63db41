"""Helpers of the rules: where the config lies, the settings of one job, and inputs that depend on config or method."""

import contextlib
import functools
import gc
import hashlib
import io as text_io
import json
import os
import shutil
import tempfile

# A plan is millions of objects that stay: looking for garbage among them takes a tenth of its time, and there is next to none.
gc.set_threshold(100_000, 20, 100)

# The stages run in the environment that runs Snakemake, activated or not.
if shutil.which("dfkd") is None:
    os.environ.update(
        PATH=os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        )
    )


def config_folder():
    """`config/` of the working directory; the one beside the workflow if there is none."""
    own = Path("config")
    return (
        own
        if (own / "config.yaml").exists()
        else Path(workflow.basedir).parent / "config"
    )


def command_line():
    """What the user typed, profiles included; None in a job's process and under another program than `snakemake`.

    Snakemake itself knows it only after the Snakefile.
    """
    if not workflow.is_main_process or Path(sys.argv[0]).name not in (
        "snakemake",
        "__main__.py",
    ):
        return None
    from snakemake.cli import parse_args

    with contextlib.redirect_stderr(
        text_io.StringIO()
    ):  # it was parsed before, and said then which profile it uses
        return parse_args(sys.argv[1:])[1]


def share_gpus():
    """Have the jobs of this machine take GPUs of their own. A batch system hands them out itself."""
    os.environ[gpus.COUNT] = (
        "0"  # of a rule that asks for none; the others say how many in their commands
    )
    if TYPED and TYPED.executor in (None, "local"):
        folder = Path(tempfile.gettempdir()) / f"dfkd-gpus-{os.getuid()}"
        os.environ.setdefault(gpus.FOLDER, str(folder))
    elif TYPED:
        os.environ.pop(gpus.FOLDER, None)


def page_gpus():
    """How many GPUs a bank's page asks for: none on a machine without, where pages are then made beside a stage."""
    elsewhere = TYPED and TYPED.executor not in (None, "local")
    return 1 if elsewhere or gpus.visible_gpus() else 0


def pass_on():
    """Have the stages, which are given settings but no config, load its plugins and know what to do when a loss is lost.

    A cluster's node reads the Snakefile again.
    """
    os.environ[plugins.VARIABLE] = plugins.passed_on(CONFIG.plugins)
    os.environ[ON_DIVERGENCE] = CONFIG.on_divergence


# What the wildcards name, in the order in which settings are looked up.
PARTS = ("dataset", "teacher", "student", "method")


def names_of(wildcards):
    """Data set, teacher, student and method of a job; "" for those that it has not."""
    if wildcards.get("pair"):
        return imported_dataset(wildcards), imported_model(wildcards), "", ""
    return tuple(wildcards.get(part, "") for part in PARTS)


# A campaign has thousands of jobs, and Snakemake asks for the same settings several times a job: what depends on names alone
# is worked out once.
@functools.cache
def own_code(dataset, teacher, student, method):
    """The hash of the code behind each of these names that a plugin registered."""
    source = CONFIG.datasets[dataset].source.partition(":")[0]
    asked = [("method", method), ("source", source)]
    asked += [("model", teacher), ("model", student)]
    hashes = {name: plugins.code_hash(kind, name) for kind, name in asked}
    return {name: code for name, code in hashes.items() if code}


def version_of(stage):
    """A params function: the version of the stage, and the code of plugins behind the job's names."""

    def version(wildcards):
        own = own_code(*names_of(wildcards))
        return canonical([STAGE_VERSIONS[stage], own]) if own else STAGE_VERSIONS[stage]

    return version


def canonical(content):
    """JSON that is equal for equal content: what a rule's params hold, so that only a real change reruns it."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


@functools.cache
def stage_settings(stage, dataset, teacher, student, method):
    """The settings of one job of `stage`."""
    return CONFIG.stage(stage, dataset, teacher, student, method or DEFAULT_METHOD)


@functools.cache
def settings_json(stage, *names):
    """The settings of one job of `stage` as JSON."""
    return canonical(stage_settings(stage, *names).model_dump(mode="json"))


def settings_of(stage):
    """A params function: the settings of one job of `stage` as JSON."""

    def settings(wildcards):
        return settings_json(stage, *names_of(wildcards))

    return settings


def first_stage_settings(wildcards):
    """The settings of a method's first stage as JSON: those of the method that count there, and no other."""
    names = {key: wildcards[key] for key in ("dataset", "teacher", "student", "method")}
    return canonical(CONFIG.stage("distill", **names).first_stage())


def dataset_settings(wildcards):
    """The data set's entry of config/datasets.yaml as JSON."""
    return canonical(CONFIG.datasets[wildcards.dataset].model_dump(mode="json"))


def source_files(wildcards):
    """The user's own folder or file that a data set is read from; none for a download.

    One that is absent while nothing is prepared yet is left to the stage, which says so in a sentence.
    """
    kind, _, path = CONFIG.datasets[wildcards.dataset].source.partition(":")
    prepared = Path(f"data/{wildcards.dataset}.h5").exists()
    if kind in ("torchvision", "sklearn"):
        return []
    needed = kind in ("folder", "hdf5", "packed") and prepared
    return [path] if needed or Path(path).exists() else []


def packed_train(wildcards):
    """The packed file that the training images are left in, if the entry of the data set says so.

    One that is absent is left to `prepare`, which says so in a sentence.
    """
    dataset = CONFIG.datasets[wildcards.dataset]
    path = dataset.source.partition(":")[2]
    return [path] if dataset.keep_packed and Path(path).exists() else []


def packed_option(wildcards, input):
    """The same for the command line."""
    return [word for path in input.packed for word in ("--packed", path)]


def any_of(names):
    """A pattern of these names and no other; one that matches nothing if there are none."""
    return "|".join(sorted(names)) or "(?!)"


def check_imported():
    """Refuse an imported checkpoint that is absent: Snakemake would train a teacher in its place."""
    for pair, path in CONFIG.imported.items():
        if not Path(path).is_file():
            raise UserError(
                f"config: imported: {pair}: {path}: no such file; put it there or remove the entry."
            )


def imported_pairs():
    """A pattern of the `dataset_teacher` pairs whose weights are imported."""
    return any_of(CONFIG.imported)


def imported_file(wildcards):
    """The checkpoint that the config names for this pair."""
    return CONFIG.imported[wildcards.pair]


def imported_dataset(wildcards):
    """The data set of an imported pair."""
    return wildcards.pair.split("_")[0]


def imported_model(wildcards):
    """The model of an imported pair."""
    return wildcards.pair.split("_")[1]


def imported_test(wildcards):
    """The test split on which the imported teacher is measured."""
    return f"data/{imported_dataset(wildcards)}.test.h5"


def shard(wildcards):
    """`2/4` of the scatter item `2-of-4`."""
    return wildcards.scatteritem.replace("-of-", "/")


# The stages behind a bank. A method's other results do not depend on them.
BANK_STAGES = {"init": ["init-bank"], "variations": ["init-bank", "augment"]}


def transferred(wildcards):
    """Kind and value of the images that the method is given to distil on; ("", "") for most methods."""
    settings = stage_settings("distill", *names_of(wildcards))
    return transfer_set(wildcards.method, settings)


def own_banks(wildcards):
    """Which of the teacher's banks the method starts from: `init`, `variations`."""
    kind, value = transferred(wildcards)
    named = (value,) if kind == "bank" and value in BANK_STAGES else ()
    return (*METHODS[wildcards.method].banks, *named)


def bank_stages(wildcards):
    """The stages that make these banks, in their order."""
    used = {stage for bank in own_banks(wildcards) for stage in BANK_STAGES[bank]}
    return [stage for stage in ("init-bank", "augment") if stage in used]


def method_banks(wildcards):
    """The banks that the method starts from: the teacher's, or the one that `transfer_set: bank:PATH` names."""
    kind, value = transferred(wildcards)
    foreign = [value] if kind == "bank" and value not in BANK_STAGES else []
    folder = f"results/banks/{wildcards.dataset}_{wildcards.teacher}"
    return [f"{folder}/{bank}.lmdb" for bank in own_banks(wildcards)] + foreign


def transfer_data(wildcards):
    """The images from outside that `real` and `kd` distil on: a prepared data set, or a folder."""
    kind, value = transferred(wildcards)
    files = {"train": f"data/{wildcards.dataset}.h5", "dataset": f"data/{value}.h5"}
    return [value] if kind == "folder" else [files[kind]] if kind in files else []


def image_options(wildcards, input):
    """What a run begins with beside its teacher: `--bank` for each bank, `--data` for images from outside, `--first-stage`."""
    banks = [word for bank in input.banks for word in ("--bank", bank)]
    outside = input.data if "data" in input.keys() else []
    outside = [outside] if isinstance(outside, str) else outside
    begun = [input.first_stage] if "first_stage" in input.keys() else []
    return [
        *banks,
        *(word for path in outside for word in ("--data", path)),
        *(word for path in begun for word in ("--first-stage", path)),
    ]


@functools.cache
def campaign_named(name):
    """The campaign of this name; a fault in it is told before, when the target is checked."""
    return find_campaign(name, config_folder(), CONFIG)


def seeds_of(wildcards):
    """The seeds of a result: the campaign's for one of a campaign, else those of the config."""
    name = wildcards.get("campaign")
    return campaign_named(name).own_seeds if name else CONFIG.seeds


def compared(wildcards):
    """The methods of a comparison: the campaign's for one of a campaign, else those of the config, or of a list in it."""
    if not wildcards.get("campaign"):
        return CONFIG.compared(wildcards.get("comparison", ""))
    pair = wildcards.dataset, wildcards.teacher, wildcards.student
    cells = campaign_cells(wildcards.campaign)[pair]
    return [cell.method for cell in cells if cell.method != SCRATCH]


@functools.cache
def campaign_cells(name):
    """The cells of a campaign, by data set, teacher and student."""
    columns = {}
    for cell in campaign_named(name).cells():
        columns.setdefault((cell.dataset, cell.teacher, cell.student), []).append(cell)
    return columns


def evaluation_pictures(folder, pair, method):
    """Outputs of an evaluation: its pictures in a run's folder, each with its place in the report."""
    return {
        name: report(
            f"{folder}/{name}.png",
            caption=f"../report/{name}.rst",
            category="Runs",
            subcategory=pair,
            labels={"method": method, "seed": "{seed}", "file": title},
        )
        for name, title in EVALUATION_PICTURES.items()
    }


def bank_options(wildcards, input):
    """`--bank` for each bank that the run started from, and for its own."""
    return [word for bank in [*input.banks, input.bank] for word in ("--bank", bank)]


def per_seed(*names):
    """An input function: these files of every seed's run."""

    def files(wildcards):
        run = "results/runs/{method}/{dataset}_{teacher}_{student}".format(**wildcards)
        seeds = seeds_of(wildcards)
        return [f"{run}/seed{seed}/{name}" for seed in seeds for name in names]

    return files


def per_compared(*names):
    """An input function: these files of every seed's run of every method that is compared."""

    def files(wildcards):
        pair = "{dataset}_{teacher}_{student}".format(**wildcards)
        return [
            f"results/runs/{method}/{pair}/seed{seed}/{name}"
            for method in compared(wildcards)
            for seed in seeds_of(wildcards)
            for name in names
        ]

    return files


def runs_folder(wildcards, input):
    """The folder of the compared runs: `results/runs`, or where their copies are if they live in storage."""
    return str(Path(input.histories[0]).parents[3])


def compared_results(wildcards):
    """The result of every method that is compared."""
    pair = "{dataset}_{teacher}_{student}".format(**wildcards)
    folder = Path("results")
    if wildcards.get("campaign"):
        folder = folder / "campaigns" / wildcards.campaign
    return [str(folder / method / f"{pair}.json") for method in compared(wildcards)]


def campaign_results(wildcards):
    """The result of every cell of a campaign; that of a student from scratch stands in several."""
    name = wildcards.campaign
    cells = campaign_named(name).cells()
    return list(dict.fromkeys(result_file(name, cell) for cell in cells))


def campaign_comparisons(wildcards):
    """The table of the comparison of every column of a campaign in which there is something to compare."""
    name = wildcards.campaign
    columns = campaign_cells(name).items()
    return [
        str(Path(comparison_file(name, column)).with_suffix(".csv"))
        for column, cells in columns
        if any(cell.method != SCRATCH for cell in cells)
    ]


def campaign_predictions(wildcards):
    """The answers of every student of a campaign, which tell what is noise."""
    cells = campaign_named(wildcards.campaign).cells()
    return [
        f"results/runs/{cell.method}/{cell.target}/seed{seed}/predictions.h5"
        for cell in cells
        if cell.method != SCRATCH
        for seed in seeds_of(wildcards)
    ]


def campaign_content(wildcards):
    """All that the file of a campaign says, as JSON."""
    return canonical(campaign_named(wildcards.campaign).model_dump(mode="json"))


def generators(wildcards):
    """The generators of every seed's run, of a method that keeps them."""
    wanted = ["generator.safetensors"] if METHODS[wildcards.method].generator else []
    return per_seed(*wanted)(wildcards)


def first_stages(*names):
    """An input function: these files of the first stage of every seed's run, of a method that has one."""

    def files(wildcards):
        return (
            per_seed(*names)(wildcards) if METHODS[wildcards.method].first_stage else []
        )

    return files


def bank_costs(wildcards):
    """The cost files of the stages that make the method's banks."""
    folder = f"results/banks/{wildcards.dataset}_{wildcards.teacher}"
    files = {
        "init-bank": gather.init(f"{folder}/shards/{{scatteritem}}.cost.json"),
        "augment": [f"{folder}/variations.cost.json"],
    }
    return [path for stage in bank_stages(wildcards) for path in files[stage]]


def bank_pictures(wildcards):
    """The pictures and pages of the banks that the method starts from."""
    folder = f"results/banks/{wildcards.dataset}_{wildcards.teacher}"
    names = {
        "init": ["init.html", "init.png", "init.curves.png"],
        "variations": [
            "variations.html",
            "variations.png",
            "variations.curves.png",
            "filter.png",
        ],
    }
    return [f"{folder}/{name}" for bank in own_banks(wildcards) for name in names[bank]]


def config_hash(wildcards):
    """SHA-256 of everything in the config that decides this result."""
    stages = ["teacher", *bank_stages(wildcards), "distill", "evaluate"]
    begun = ["first-stage"] if METHODS[wildcards.method].first_stage else []
    dataset = CONFIG.datasets[wildcards.dataset].model_dump(mode="json")
    content = {
        "dataset": dataset,
        "stages": {
            stage: json.loads(settings_json(stage, *names_of(wildcards)))
            for stage in stages
        },
        "seeds": seeds_of(wildcards),
        "versions": {
            stage: version_of(stage)(wildcards)
            for stage in ("prepare", *stages, *begun)
        },
    }
    kind, value = transferred(wildcards)
    if kind == "dataset":
        content["transfer_set"] = CONFIG.datasets[value].model_dump(mode="json")
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def result_options(wildcards, input):
    """The options of `dfkd result` that say which file is what: metrics, costs per stage, artefacts."""
    costs = [("teacher", input.teacher_cost)]
    for path in input.bank_costs:
        costs.append(("init-bank" if "shards" in Path(path).parts else "augment", path))
    costs += [("first-stage", path) for path in input.first_stage_costs]
    costs += [("distill", path) for path in input.distill_costs]
    costs += [("evaluate", path) for path in input.evaluate_costs]
    artefacts = [("test", input.test), ("teacher", input.weights)]
    artefacts += [(Path(path).stem, path) for path in input.banks]
    runs = {
        "student": input.students,
        "bank": input.run_banks,
        "generator": input.generators,
        "first_stage": input.first_stages,
    }
    for name, paths in runs.items():
        for seed, path in zip(
            seeds_of(wildcards), paths
        ):  # a method may keep no generator and have no first stage
            artefacts.append((f"{name}-seed{seed}", path))
    options = [("--metrics", path) for path in input.metrics]
    options += [("--cost", f"{stage}={path}") for stage, path in costs]
    options += [("--artefact", f"{name}={path}") for name, path in artefacts]
    options += [
        ("--variations", path) for name, path in artefacts if name == "variations"
    ]
    return [word for option in options for word in option]


def scratch_settings(wildcards):
    """The teacher's recipe for a student, with the seed of its run, as JSON."""
    settings = CONFIG.stage("teacher", wildcards.dataset, wildcards.student)
    return canonical(settings.model_dump(mode="json") | {"seed": int(wildcards.seed)})


def per_scratch_seed(*names):
    """An input function: these files of every seed's student from scratch."""

    def files(wildcards):
        run = "results/runs/scratch/{dataset}_{student}".format(**wildcards)
        seeds = seeds_of(wildcards)
        return [f"{run}/seed{seed}/{name}" for seed in seeds for name in names]

    return files


def scratch_hash(wildcards):
    """SHA-256 of everything in the config that decides the result of a student from scratch."""
    names = {"dataset": wildcards.dataset, "student": wildcards.student}
    content = {
        "dataset": CONFIG.datasets[wildcards.dataset].model_dump(mode="json"),
        "stages": {
            "scratch": CONFIG.stage("teacher", *names.values()).model_dump(mode="json"),
            "evaluate": CONFIG.stage("evaluate", **names).model_dump(mode="json"),
        },
        "seeds": seeds_of(wildcards),
        "versions": {
            stage: version_of(stage)(wildcards)
            for stage in ("prepare", "teacher", "evaluate")
        },
    }
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def scratch_options(wildcards, input):
    """The options of `dfkd result` for a student from scratch."""
    options = [("--metrics", path) for path in input.metrics]
    options += [("--cost", f"scratch={path}") for path in input.costs]
    options += [("--cost", f"evaluate={path}") for path in input.evaluate_costs]
    options += [("--artefact", f"test={input.test}")]
    for seed, path in zip(seeds_of(wildcards), input.students, strict=True):
        options.append(("--artefact", f"student-seed{seed}={path}"))
    return [word for option in options for word in option]
