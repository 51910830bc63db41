"""JSON Schemas of the config and of a campaign, generated from the typed settings: `make schema` writes them into the workflow.

Imports no torch.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from dfkd.campaigns import Campaign
from dfkd.config import STAGES, Config
from dfkd.methods import METHODS


def config_schema() -> dict[str, Any]:
    """The schema of `Config` with every section's `defaults` and `overrides` spelled out.

    `Config` itself keeps sections as plain mappings, because only the sum of defaults and overrides is validated; here
    they refer to the stage's settings, so that an editor completes and checks them key by key.
    """
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    sections = {stage.replace("-", "_"): settings for stage, settings in STAGES.items()}
    sections |= {f"method {name}": method.settings for name, method in METHODS.items()}
    methods = {}
    for key, settings in sections.items():
        own = settings.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(own.pop("$defs", {}))
        definitions[settings.__name__] = own
        section = _section(definitions["Section"], {"$ref": f"#/$defs/{settings.__name__}"})
        if key.startswith("method "):
            methods[key.removeprefix("method ")] = section
        else:
            schema["properties"][key] = section
    del schema["properties"]["methods"]["patternProperties"]
    schema["properties"]["methods"] |= {"properties": methods, "additionalProperties": False}
    del definitions["Section"]
    for content in schema["properties"].values():
        if "patternProperties" in content:  # a name of another form is refused, which pydantic leaves unsaid
            content["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _section(template: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The schema of a section whose values are `settings`."""
    overrides = {**template["properties"]["overrides"], "additionalProperties": settings}
    return {**template, "properties": {"defaults": settings, "overrides": overrides}}


def campaign_schema() -> dict[str, Any]:
    """The schema of a file of config/campaigns/. That either pairs or teachers and students are given is left to the types."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Campaign.model_json_schema()}


# What lies in workflow/schemas/ as NAME.schema.json and is rendered here.
SCHEMAS = {"config": config_schema, "campaign": campaign_schema}


def render(name: str = "config") -> str:
    """A schema as the text that `workflow/schemas/NAME.schema.json` holds."""
    return json.dumps(SCHEMAS[name](), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render(*sys.argv[1:]))
