"""Counts and durations as people read them; exporters.space.readable is for bytes."""


def brief(count: float) -> str:
    """A count in three figures: 12345678 -> '12.3M'."""
    if count < 999.5:
        whole = count >= 99.95 or float(count).is_integer()
        return f"{count:.0f}" if whole else f"{count:.1f}"
    value, unit = count / 1e3, "k"
    for larger in ("M", "G", "T"):
        if value < 999.5:
            break
        value, unit = value / 1e3, larger
    return f"{value:.0f}{unit}" if value >= 99.95 else f"{value:.1f}{unit}"


def duration(seconds: float, digits: int = 0) -> str:
    """Seconds in their two largest units: 286 -> '4 min 46 s'; `digits` are of those below 60 s."""
    if round(seconds, digits) < 60:
        return f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
