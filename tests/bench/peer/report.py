"""From the rows of all rounds to one row per contestant, and to Markdown. Pure functions."""

from statistics import median, median_low

from peer.contest import SIZES

MEASURED = ("step_ms", "forward_backward_ms", "not_forward_backward_ms", "ns_per_param", "ms",
            "ratio_to_adamw_fused", "ratio_to_limit")
MEMORY = ("state_bytes", "peak_rss", "base_rss")
LOSS_TOLERANCE = 1e-3  # relative; ways to shard the same optimizer differ by rounding alone
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


def parameter_count(size):
    per_layer = 12 * size.width**2 + 13 * size.width
    return (size.vocabulary + size.positions) * size.width + size.layers * per_layer + 2 * size.width


def merged(rounds):
    """One row of the rows that a contestant brought in each round: medians, and spread: {field: [min, max]}. One refusal
    refuses all."""
    if refused := next((row for row in rounds if "refused" in row), None):
        return refused
    row = {**rounds[0]}
    for field in filter(row.__contains__, MEASURED):
        row[field] = median(each[field] for each in rounds)
    for field in filter(row.__contains__, MEMORY):
        row[field] = median_low(each[field] for each in rounds)
    row["spread"] = {field: [min(each[field] for each in rounds), max(each[field] for each in rounds)]
                     for field in MEASURED if field in row}
    return row


def refuse_other_losses(rows, optimizer_of):
    """Refuses a row whose loss is not that of the first row of its model with the same optimizer: its arithmetic differs."""
    expected = {}
    for row in rows:
        if "last_loss" not in row:
            continue
        first = expected.setdefault((row["model"], optimizer_of.get(row["name"], row["name"])), row)
        if abs(row["last_loss"] - first["last_loss"]) > LOSS_TOLERANCE * abs(first["last_loss"]):
            row["refused"] = f"its loss is {row['last_loss']:.4f} where that of {first['name']} is {first['last_loss']:.4f}"
    return rows


def range_of(row, field, digits):
    low, high = row["spread"][field]
    if low == high:  # one round
        return f"{row[field]:.{digits}f}"
    return f"{row[field]:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def named(row):
    return f"**{row['name']}**" if row.get("ours") else row["name"]


def table(header, lines):
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def memory_of(row):
    if "peak_rss" not in row:
        return ""
    before = f" ({row['base_rss'] / 1e6:.0f})" if "base_rss" in row else ""
    return f"{row['peak_rss'] / 1e6:.0f}{before}"


def train_table(model, rows):
    def state(row):
        return f"{row['state_bytes']:,}" if "state_bytes" in row else ""

    header = [f"{model}: {parameter_count(SIZES[model]) / 1e6:.1f} M parameters", "whole step, ms",
              "minus forward/backward, ms", "state per rank, bytes", "peak RSS per rank, MB (before the model)"]
    ordered = sorted(rows, key=lambda row: row["not_forward_backward_ms"])
    return table(header, [[named(row), range_of(row, "step_ms", 0), range_of(row, "not_forward_backward_ms", 1),
                           state(row), memory_of(row)] for row in ordered])


def exchange_table(model, rows):
    header = [f"{model}: reduce + step + gather alone", "ms"]
    return table(header, [[named(row), range_of(row, "ms", 1)] for row in sorted(rows, key=lambda row: row["ms"])])


def step_table(model, rows):
    threads = sorted({row["threads"] for row in rows})
    by_name = {}
    for row in rows:
        by_name.setdefault(named(row), {})[row["threads"]] = row
    header = [f"{model}: optimizer step, ns per parameter"] + [f"{n} thread{'s' * (n > 1)}" for n in threads]
    fastest = sorted(by_name.items(), key=lambda item: min(row["ns_per_param"] for row in item[1].values()))
    return table(header, [[name] + [range_of(of[n], "ns_per_param", 2) if n in of else "" for n in threads]
                          for name, of in fastest])


TABLES = {"train": train_table, "exchange": exchange_table, "step": step_table}


def markdown(report):
    """`report`: {date, machine, versions, command, rounds, rows, exchange, step}; rows are those of `train`."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    machine = ", ".join(f"{value}" for value in report["machine"].values())
    rounds = f"{report['rounds']} rounds" if report["rounds"] > 1 else "one round"
    blocks = [f"{report['date']}, `{report['command']}`: all took turns in {rounds}; medians, and in brackets the smallest "
              f"and the largest.\nMachine: {machine}.\nVersions: {versions}."]
    of_part = {"train": report["rows"], "exchange": report["exchange"], "step": report["step"]}
    for model in SIZES:
        for part, make_table in TABLES.items():
            rows = [row for row in of_part[part] if row["model"] == model and "refused" not in row]
            if rows:
                blocks.append(make_table(model, rows))
    refused = [f"- {row['model']}, {row['name']}: {row['refused']}"
               for rows in of_part.values() for row in rows if "refused" in row]
    if refused:
        blocks.append("Not timed:\n" + "\n".join(refused))
    return "\n\n".join(blocks) + "\n"


def with_tables(readme, tables):
    """The README's text with what stands between the two marker comments replaced. Throws ValueError without them."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{tables}{END}{after}"
