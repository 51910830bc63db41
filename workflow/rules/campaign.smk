# A campaign has results of its own, because it may have seeds of its own; the runs behind them are those of every target.
use rule result as campaign_result with:
    output:
        result="results/campaigns/{campaign}/{method}/{dataset}_{teacher}_{student}.json",
        page=report(
            "results/campaigns/{campaign}/{method}/{dataset}_{teacher}_{student}.html",
            caption="../report/result.rst",
            category="Campaigns",
            subcategory="{campaign}",
            labels={
                "dataset": "{dataset}",
                "teacher": "{teacher}",
                "student": "{student}",
                "file": "result of {method}",
            },
        ),
    log:
        "logs/campaign_result/{campaign}/{method}/{dataset}_{teacher}_{student}.log",
    benchmark:
        "results/benchmarks/campaign_result/{campaign}/{method}/{dataset}_{teacher}_{student}.tsv"


use rule result_scratch as campaign_result_scratch with:
    output:
        result="results/campaigns/{campaign}/scratch/{dataset}_{student}.json",
        page=report(
            "results/campaigns/{campaign}/scratch/{dataset}_{student}.html",
            caption="../report/result.rst",
            category="Campaigns",
            subcategory="{campaign}",
            labels={
                "dataset": "{dataset}",
                "teacher": "none",
                "student": "{student}",
                "file": "result of scratch",
            },
        ),
    log:
        "logs/campaign_result/{campaign}/scratch/{dataset}_{student}.log",
    benchmark:
        "results/benchmarks/campaign_result/{campaign}/scratch/{dataset}_{student}.tsv"


use rule compare as campaign_compare with:
    output:
        page=report(
            "results/campaigns/{campaign}/compare/{dataset}_{teacher}_{student}.html",
            caption="../report/compare.rst",
            category="Campaigns",
            subcategory="{campaign}",
            labels={
                "dataset": "{dataset}",
                "teacher": "{teacher}",
                "student": "{student}",
                "file": "comparison",
            },
        ),
        picture="results/campaigns/{campaign}/compare/{dataset}_{teacher}_{student}.png",
        table="results/campaigns/{campaign}/compare/{dataset}_{teacher}_{student}.csv",
    log:
        "logs/campaign_compare/{campaign}/{dataset}_{teacher}_{student}.log",
    benchmark:
        "results/benchmarks/campaign_compare/{campaign}/{dataset}_{teacher}_{student}.tsv"


rule campaign:
    input:
        results=campaign_results,
        comparisons=campaign_comparisons,
        predictions=campaign_predictions,
    output:
        page=report(
            "results/campaigns/{campaign}.html",
            caption="../report/campaign.rst",
            category="Campaigns",
            subcategory="{campaign}",
            labels={"file": "page"},
        ),
        picture=report(
            "results/campaigns/{campaign}.png",
            caption="../report/campaign.rst",
            category="Campaigns",
            subcategory="{campaign}",
            labels={"file": "picture"},
        ),
        table=report(
            "results/campaigns/{campaign}.csv",
            caption="../report/campaign.rst",
            category="Campaigns",
            subcategory="{campaign}",
            labels={"file": "table"},
        ),
    log:
        "logs/campaign/{campaign}.log",
    benchmark:
        "results/benchmarks/campaign/{campaign}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        campaign=campaign_content,
    message:
        "Gather the campaign {wildcards.campaign}"
    shell:
        "dfkd campaign {params.campaign:q} --results results -o {output.page:q} > {log:q} 2>&1"
