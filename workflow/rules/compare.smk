rule compare:
    input:
        results=compared_results,
        histories=per_compared("history.csv"),
        banks=per_compared("bank.lmdb"),
        predictions=per_compared("predictions.h5"),
    output:
        page=report(
            "results/compare/{dataset}_{teacher}_{student}.html",
            caption="../report/compare.rst",
            category="Comparison",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "file": "page",
            },
        ),
        picture=report(
            "results/compare/{dataset}_{teacher}_{student}.png",
            caption="../report/compare.rst",
            category="Comparison",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "file": "picture",
            },
        ),
        table=report(
            "results/compare/{dataset}_{teacher}_{student}.csv",
            caption="../report/compare.rst",
            category="Comparison",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "file": "table",
            },
        ),
    log:
        "logs/compare/{dataset}_{teacher}_{student}.log",
    benchmark:
        "results/benchmarks/compare/{dataset}_{teacher}_{student}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    message:
        "Compare the methods on {wildcards.dataset}: {wildcards.teacher} to {wildcards.student}"
    shell:
        "dfkd compare {input.results:q} --runs results/runs -o {output.page:q} > {log:q} 2>&1"


# The lists of `comparisons`: the config names their methods.
use rule compare as compare_list with:
    output:
        page=report(
            "results/compare/{comparison}_{dataset}_{teacher}_{student}.html",
            caption="../report/compare.rst",
            category="Comparison",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "file": "page of {comparison}",
            },
        ),
        picture=report(
            "results/compare/{comparison}_{dataset}_{teacher}_{student}.png",
            caption="../report/compare.rst",
            category="Comparison",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "file": "picture of {comparison}",
            },
        ),
        table=report(
            "results/compare/{comparison}_{dataset}_{teacher}_{student}.csv",
            caption="../report/compare.rst",
            category="Comparison",
            subcategory="{dataset}",
            labels={
                "teacher": "{teacher}",
                "student": "{student}",
                "file": "table of {comparison}",
            },
        ),
    log:
        "logs/compare/{comparison}_{dataset}_{teacher}_{student}.log",
    benchmark:
        "results/benchmarks/compare/{comparison}_{dataset}_{teacher}_{student}.tsv"
    wildcard_constraints:
        comparison=any_of(CONFIG.comparisons),
    message:
        "Compare the methods of {wildcards.comparison} on {wildcards.dataset}: {wildcards.teacher} to {wildcards.student}"
