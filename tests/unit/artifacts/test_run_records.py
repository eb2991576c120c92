import json
from pathlib import Path

from compressor.artifacts.runs import RunRecord, load_run


def test_a_record_without_intervals_of_gates_is_read(tmp_path: Path) -> None:
    old = {
        "gate": "m max 2",
        "step": "s",
        "metric": "m",
        "value": 1.0,
        "limit": 2.0,
        "passed": True,
        "reason": "1 ≤ 2",
    }
    record = {"pipeline": "p", "command": "c", "steps": [], "gates": [old]}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (gate,) = load_run(tmp_path).gates
    assert (gate.verdict, gate.bound) == ("passed", "max")
    rewritten = RunRecord(pipeline="p", command="c", steps=(), gates=(gate,)).model_dump_json()
    assert RunRecord.model_validate_json(rewritten).gates == (gate,)
