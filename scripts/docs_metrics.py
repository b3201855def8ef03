"""The page of metrics, from the table that the exposition itself is made from. Read by ``make_docs.py``."""

from __future__ import annotations

from docs_markdown import code, number, table

from llamaman.gateway.metrics_table import FAMILIES, MOST_MODELS


def page() -> str:
    """The whole page."""
    rows = (
        (code(each.name), each.kind, ", ".join(code(label) for label in each.labels), each.help)
        for each in FAMILIES
    )
    buckets = (
        (code(each.name), ", ".join(f"{bound:g}" for bound in each.buckets))
        for each in FAMILIES
        if each.buckets
    )
    return (
        "# Metrics\n\n`GET /metrics` on the management port and on the admin socket, in Prometheus' text format or, "
        "where it is accepted, as OpenMetrics. It needs the level *view*: make a key of scope `view` for the "
        "collector, which can then read figures and start nothing.\n\n"
        "```yaml\nscrape_configs:\n  - job_name: llamaman\n    authorization:\n"
        "      credentials_file: /etc/prometheus/llamaman.key\n    static_configs:\n"
        '      - targets: ["llamaman.example:5000"]\n```\n\n'
        "A label never holds what a client sends: models are those of the library, instances those of this node. "
        f"{number(MOST_MODELS)} models are counted at a time; the one that was not asked for the longest goes first. "
        "Counters begin at 0 when LlamaMan starts. An engine's own metrics are at `/metrics` of "
        "its instance's port.\n\n"
        f"{table(('Metric', 'Kind', 'Labels', 'Meaning'), rows)}"
        f"\n## Buckets\n\nUpper bounds, in seconds.\n\n{table(('Metric', 'Bounds'), buckets)}"
    )
