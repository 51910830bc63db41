rule distill:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
        banks=method_banks,
        test="data/{dataset}.test.h5",
    output:
        student="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/student.safetensors",
        card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/student.json",
        best="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/best.safetensors",
        best_card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/best.json",
        bank="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/bank.lmdb",
        history="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/history.csv",
        timing="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/timing.csv",
        cost="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/cost.json",
    log:
        "logs/distill/{method}/{dataset}_{teacher}_{student}_seed{seed}.log",
    benchmark:
        "results/benchmarks/distill/{method}/{dataset}_{teacher}_{student}_seed{seed}.tsv"
    wildcard_constraints:
        method=any_of(
            name
            for name, own in METHODS.items()
            if not (own.generator or own.real or own.transfer)
        ),
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=2880,
        gpu=1,
        cache_mb=4000,
    params:
        settings=settings_of("distill"),
        version=version_of("distill"),
        images=image_options,
        checkpoints="results/checkpoints/distill/{method}/{dataset}_{teacher}_{student}_seed{seed}",
    message:
        "Distil {wildcards.teacher} into {wildcards.student} ({wildcards.dataset}) by {wildcards.method}, "
        "seed {wildcards.seed}"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd distill --teacher {input.teacher:q} {params.images:q} --method {wildcards.method:q} "
        "--student {wildcards.student:q} --seed {wildcards.seed:q} --test {input.test:q} "
        "--settings {params.settings:q} --cache results/caches --cache-mb {resources.cache_mb} "
        "--checkpoints {params.checkpoints:q} -o {output.student:q} > {log:q} 2>&1"


# Methods whose generator lives for the whole run keep it too.
use rule distill as distill_generator with:
    output:
        student="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/student.safetensors",
        card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/student.json",
        best="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/best.safetensors",
        best_card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/best.json",
        bank="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/bank.lmdb",
        history="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/history.csv",
        timing="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/timing.csv",
        cost="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/cost.json",
        generator="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/generator.safetensors",
        generator_card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/generator.json",
    wildcard_constraints:
        method=any_of(name for name, own in METHODS.items() if own.generator),


# Distillation on images from outside, for comparison: the control `real`, and `kd` and its like on their transfer sets.
# Not data-free.
use rule distill as distill_transfer with:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
        banks=method_banks,
        test="data/{dataset}.test.h5",
        data=transfer_data,
        packed=transfer_packed,
    wildcard_constraints:
        method=any_of(
            name
            for name, own in METHODS.items()
            if (own.real or own.transfer) and not own.first_stage
        ),


# What the methods in two stages train before the student's run.
rule first_stage:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
        banks=method_banks,
        data=transfer_data,
        packed=transfer_packed,
    output:
        first_stage="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/first_stage.safetensors",
        card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/first_stage.json",
        history="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/first_stage.history.csv",
        timing="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/first_stage.timing.csv",
        cost="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/first_stage.cost.json",
    log:
        "logs/first_stage/{method}/{dataset}_{teacher}_{student}_seed{seed}.log",
    benchmark:
        "results/benchmarks/first_stage/{method}/{dataset}_{teacher}_{student}_seed{seed}.tsv"
    wildcard_constraints:
        method=any_of(name for name, own in METHODS.items() if own.first_stage),
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=1440,
        gpu=1,
    params:
        settings=first_stage_settings,
        version=version_of("first-stage"),
        images=image_options,
        checkpoints="results/checkpoints/first_stage/{method}/{dataset}_{teacher}_{student}_seed{seed}",
    message:
        "First stage of {wildcards.method} for {wildcards.student} under {wildcards.teacher} ({wildcards.dataset}), "
        "seed {wildcards.seed}"
    shell:
        "DFKD_GPUS={resources.gpu} "
        "dfkd first-stage --teacher {input.teacher:q} {params.images:q} --method {wildcards.method:q} "
        "--student {wildcards.student:q} --seed {wildcards.seed:q} --settings {params.settings:q} "
        "--checkpoints {params.checkpoints:q} -o {output.first_stage:q} > {log:q} 2>&1"


use rule distill as distill_two_stage with:
    input:
        teacher="results/teachers/{dataset}_{teacher}/weights.safetensors",
        teacher_card="results/teachers/{dataset}_{teacher}/weights.json",
        banks=method_banks,
        test="data/{dataset}.test.h5",
        data=transfer_data,
        packed=transfer_packed,
        first_stage="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/first_stage.safetensors",
        first_stage_card="results/runs/{method}/{dataset}_{teacher}_{student}/seed{seed}/first_stage.json",
    wildcard_constraints:
        method=any_of(name for name, own in METHODS.items() if own.first_stage),
