rule init_shard:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
    output:
        bank="results/banks/{dataset}_{teacher}/shards/{scatteritem}.lmdb",
        history="results/banks/{dataset}_{teacher}/shards/{scatteritem}.history.csv",
        timing="results/banks/{dataset}_{teacher}/shards/{scatteritem}.timing.csv",
        cost="results/banks/{dataset}_{teacher}/shards/{scatteritem}.cost.json",
    log:
        "logs/init_shard/{dataset}_{teacher}_{scatteritem}.log",
    benchmark:
        "results/benchmarks/init_shard/{dataset}_{teacher}_{scatteritem}.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        mem_mb=8000,
        runtime=1440,
        gpu=1,
    params:
        settings=settings_of("init-bank"),
        version=version_of("init-bank"),
        shard=shard,
        checkpoints="results/checkpoints/init_shard/{dataset}_{teacher}_{scatteritem}",
    message:
        "Invert {wildcards.teacher} ({wildcards.dataset}) into images: shard {wildcards.scatteritem}"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd init-bank --teacher {input.teacher:q} --settings {params.settings:q} --shard {params.shard:q} "
        "--checkpoints {params.checkpoints:q} -o {output.bank:q} > {log:q} 2>&1"


rule init_bank:
    input:
        shards=gather.init(
            "results/banks/{{dataset}}_{{teacher}}/shards/{scatteritem}.lmdb"
        ),
        histories=gather.init(
            "results/banks/{{dataset}}_{{teacher}}/shards/{scatteritem}.history.csv"
        ),
        timings=gather.init(
            "results/banks/{{dataset}}_{{teacher}}/shards/{scatteritem}.timing.csv"
        ),
    output:
        bank="results/banks/{dataset}_{teacher}/init.lmdb",
        history="results/banks/{dataset}_{teacher}/init.history.csv",
        timing="results/banks/{dataset}_{teacher}/init.timing.csv",
    log:
        "logs/init_bank/{dataset}_{teacher}.log",
    benchmark:
        "results/benchmarks/init_bank/{dataset}_{teacher}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    message:
        "Merge the init bank of {wildcards.teacher} ({wildcards.dataset})"
    # It joins the histories and timings that lie beside the shards, too.
    shell:
        "dfkd bank merge {input.shards:q} -o {output.bank:q} > {log:q} 2>&1"


rule init_page:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
        bank="results/banks/{dataset}_{teacher}/init.lmdb",
    output:
        page=report(
            "results/banks/{dataset}_{teacher}/init.html",
            caption="../report/init_page.rst",
            category="Image banks",
            subcategory="{dataset}: {teacher}",
            labels={"bank": "init", "file": "page"},
        ),
        picture=report(
            "results/banks/{dataset}_{teacher}/init.png",
            caption="../report/init.rst",
            category="Image banks",
            subcategory="{dataset}: {teacher}",
            labels={"bank": "init", "file": "images"},
        ),
        scores="results/banks/{dataset}_{teacher}/init.scores.h5",
    log:
        "logs/init_page/{dataset}_{teacher}.log",
    benchmark:
        "results/benchmarks/init_page/{dataset}_{teacher}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
        gpu=PAGE_GPUS,
    message:
        "Score the init bank of {wildcards.teacher} ({wildcards.dataset}) and write its page"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd bank page {input.bank:q} --teacher {input.teacher:q} -o {output.page:q} "
        "--grid {output.picture:q} --scores > {log:q} 2>&1"


rule init_curves:
    input:
        history="results/banks/{dataset}_{teacher}/init.history.csv",
    output:
        curves=report(
            "results/banks/{dataset}_{teacher}/init.curves.png",
            caption="../report/init_curves.rst",
            category="Image banks",
            subcategory="{dataset}: {teacher}",
            labels={"bank": "init", "file": "curves"},
        ),
    log:
        "logs/init_curves/{dataset}_{teacher}.log",
    benchmark:
        "results/benchmarks/init_curves/{dataset}_{teacher}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    message:
        "Draw the losses of the inversion of {wildcards.teacher} ({wildcards.dataset})"
    shell:
        "dfkd plot curves {input.history:q} -o {output.curves:q} > {log:q} 2>&1"


rule run_bank_page:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
        bank="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/bank.lmdb",
        card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/student.json",
    output:
        page=report(
            "results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/bank.html",
            caption="../report/bank_page.rst",
            category="Runs",
            subcategory="{dataset}: {teacher} to {student}",
            labels={"method": "{method}", "seed": "{seed}", "file": "image bank"},
        ),
        scores="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/bank.scores.h5",
    log:
        "logs/run_bank_page/{method}/{dataset}_{teacher}_{student}_seed{seed}.log",
    benchmark:
        "results/benchmarks/run_bank_page/{method}/{dataset}_{teacher}_{student}_seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
        gpu=PAGE_GPUS,
    message:
        "Score what {wildcards.method} synthesised against {wildcards.student} ({wildcards.dataset}), seed {wildcards.seed}, "
        "and write its page"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd bank page {input.bank:q} --teacher {input.teacher:q} -o {output.page:q} --scores > {log:q} 2>&1"
