rule augment:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
        bank="results/banks/{dataset}_{teacher}/init.lmdb",
    output:
        bank="results/banks/{dataset}_{teacher}/variations.lmdb",
        rejected="results/banks/{dataset}_{teacher}/rejected.lmdb",
        history="results/banks/{dataset}_{teacher}/variations.history.csv",
        timing="results/banks/{dataset}_{teacher}/variations.timing.csv",
        cost="results/banks/{dataset}_{teacher}/variations.cost.json",
        plot=report(
            "results/banks/{dataset}_{teacher}/filter.png",
            caption="../report/filter.rst",
            category="Image banks",
            subcategory="{dataset}: {teacher}",
            labels={"bank": "variations", "file": "fidelity filter"},
        ),
    log:
        "logs/augment/{dataset}_{teacher}.log",
    benchmark:
        "results/benchmarks/augment/{dataset}_{teacher}.tsv"
    priority: 1  # before the pages, which nothing waits for
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=2880,
        gpu=1,
    params:
        settings=settings_of("augment"),
        version=version_of("augment"),
        checkpoints="results/checkpoints/augment/{dataset}_{teacher}",
    message:
        "Multiply the init bank of {wildcards.teacher} ({wildcards.dataset}) by diffusion, and filter it"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd augment --teacher {input.teacher:q} --bank {input.bank:q} --settings {params.settings:q} "
        "--checkpoints {params.checkpoints:q} -o {output.bank:q} --rejected {output.rejected:q} "
        "--plot {output.plot:q} > {log:q} 2>&1"


rule variations_page:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
        bank="results/banks/{dataset}_{teacher}/variations.lmdb",
        rejected="results/banks/{dataset}_{teacher}/rejected.lmdb",
        parents="results/banks/{dataset}_{teacher}/init.lmdb",
        parents_scores="results/banks/{dataset}_{teacher}/init.scores.h5",
    output:
        page=report(
            "results/banks/{dataset}_{teacher}/variations.html",
            caption="../report/variations_page.rst",
            category="Image banks",
            subcategory="{dataset}: {teacher}",
            labels={"bank": "variations", "file": "page"},
        ),
        picture=report(
            "results/banks/{dataset}_{teacher}/variations.png",
            caption="../report/variations.rst",
            category="Image banks",
            subcategory="{dataset}: {teacher}",
            labels={"bank": "variations", "file": "images"},
        ),
        scores="results/banks/{dataset}_{teacher}/variations.scores.h5",
        rejected_scores="results/banks/{dataset}_{teacher}/rejected.scores.h5",
    log:
        "logs/variations_page/{dataset}_{teacher}.log",
    benchmark:
        "results/benchmarks/variations_page/{dataset}_{teacher}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
        gpu=PAGE_GPUS,
    message:
        "Score the variations of {wildcards.teacher} ({wildcards.dataset}) and write their page"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd bank page {input.bank:q} --teacher {input.teacher:q} -o {output.page:q} "
        "--grid {output.picture:q} --scores > {log:q} 2>&1"


rule variations_curves:
    input:
        history="results/banks/{dataset}_{teacher}/variations.history.csv",
    output:
        curves=report(
            "results/banks/{dataset}_{teacher}/variations.curves.png",
            caption="../report/variations_curves.rst",
            category="Image banks",
            subcategory="{dataset}: {teacher}",
            labels={"bank": "variations", "file": "curves"},
        ),
    log:
        "logs/variations_curves/{dataset}_{teacher}.log",
    benchmark:
        "results/benchmarks/variations_curves/{dataset}_{teacher}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    message:
        "Draw the training of the diffusion model of {wildcards.teacher} ({wildcards.dataset})"
    shell:
        "dfkd plot curves {input.history:q} -o {output.curves:q} > {log:q} 2>&1"
