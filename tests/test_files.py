"""Writing that loses nothing: kills, full disks, other people's files, links."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from zoo.errors import BadArgumentError
from zoo.files import writing
from zoo.files.writing import edited_directory, native_writer, new_directory, new_file, set_aside, write_file

OURS = ("card.json", "model.*")


def _release(folder: Path, content: str = "old") -> Path:
    folder.mkdir(parents=True)
    for name in ("card.json", "model.safetensors"):
        (folder / name).write_text(content)
    return folder


def _write(out: Path, content: str = "new") -> None:
    with new_directory(out, overwrite=True, ours=OURS) as folder:
        for name in ("card.json", "model.safetensors"):
            (folder / name).write_text(content)


def _content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_release_is_overwritten_and_nothing_else_is_left(tmp_path: Path) -> None:
    out = _release(tmp_path / "release")
    _write(out)
    assert _content(out) == {"card.json": "new", "model.safetensors": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


@pytest.mark.parametrize("foreign", ["thesis.docx", "chapters/model.1", ".hidden"])
def test_a_folder_with_somebody_elses_file_is_not_overwritten(tmp_path: Path, foreign: str) -> None:
    out = _release(tmp_path / "release")
    (out / foreign).parent.mkdir(exist_ok=True)
    (out / foreign).write_text("years of work")
    with pytest.raises(BadArgumentError, match=f"did not write {foreign}"):
        _write(out)
    assert (out / foreign).read_text() == "years of work"
    assert (out / "card.json").read_text() == "old"


def test_a_link_to_somebody_elses_folder_counts_as_a_file(tmp_path: Path) -> None:
    out, other = _release(tmp_path / "release"), tmp_path / "other"
    other.mkdir()
    (out / "link").symlink_to(other)
    with pytest.raises(BadArgumentError, match="did not write link"):
        _write(out)


def test_a_folder_without_the_mark_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "models"
    out.mkdir()
    (out / "model.bin").write_text("trained for weeks")
    with pytest.raises(BadArgumentError, match=r"holds no card\.json"):
        _write(out)
    assert (out / "model.bin").is_file()


@pytest.mark.parametrize("name", [".", "..", "../.."])
def test_the_current_folder_and_those_around_it_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    inside = tmp_path / "a" / "b"
    _release(inside)
    monkeypatch.chdir(inside)
    with pytest.raises(BadArgumentError, match="current folder"):
        _write(Path(name))
    assert (inside / "card.json").read_text() == "old"


def test_links_stay_links(tmp_path: Path) -> None:
    real = _release(tmp_path / "disk" / "release-7")
    link = tmp_path / "release"
    link.symlink_to(real)
    _write(link)
    assert link.is_symlink()
    assert _content(real)["card.json"] == "new"
    file = tmp_path / "current.json"
    file.symlink_to(real / "card.json")
    write_file(file, "newest")
    assert file.is_symlink()
    assert (real / "card.json").read_text() == "newest"


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    out = _release(tmp_path / "release")
    file = out / "card.json"

    def fill_the_disk() -> None:
        with (
            new_directory(out, overwrite=True, ours=OURS) as new,
            edited_directory(out) as edited,
            new_file(file) as stream,
        ):
            (new / "card.json").write_text("half")
            write_file(edited / "card.json", "half")
            stream.write("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fill_the_disk()
    assert _content(out) == {"card.json": "old", "model.safetensors": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
def test_a_device_is_written_directly() -> None:
    with pytest.raises(OSError, match="No space"):
        write_file(Path("/dev/full"), "text")
    write_file(Path(os.devnull), "text")
    assert not Path(os.devnull).is_file()


def test_an_edit_links_what_it_leaves_and_never_changes_the_old_files(tmp_path: Path) -> None:
    out = _release(tmp_path / "bundle")
    (out / "sub").mkdir()
    (out / "sub" / "engine").write_text("engine")
    kept, before = (out / "sub" / "engine").stat().st_ino, (out / "card.json").open()
    with before, edited_directory(out) as folder:
        write_file(folder / "card.json", "new")
        assert before.read() == "old"
    assert (out / "card.json").read_text() == "new"
    assert (out / "sub" / "engine").stat().st_ino == kept


def test_modes_are_kept_and_new_files_are_readable(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text("old")
    file.chmod(0o600)
    write_file(file, "new")
    assert file.stat().st_mode & 0o777 == 0o600
    write_file(tmp_path / "card.json", "new")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "card.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("swap", ["in one step", "by two renames"])
def test_old_or_new_is_there_after_a_kill_at_any_moment(tmp_path: Path, swap: str) -> None:
    """A child overwrites a release again and again; each kill leaves a whole one, and the next run cleans up."""
    out = _release(tmp_path / "release", "0")
    program = textwrap.dedent(f"""
        import sys, itertools
        from pathlib import Path
        sys.path.insert(0, {str(Path(writing.__file__).parents[2])!r})
        from zoo.files import writing
        if {swap == "by two renames"}:
            writing.sys = type("Elsewhere", (), {{"platform": "win32"}})
        print("go", flush=True)
        for number in itertools.count():
            with writing.new_directory(Path({str(out)!r}), overwrite=True, ours={OURS!r}) as folder:
                for name in ("card.json", "model.safetensors"):
                    (folder / name).write_text(str(number) * 2000)
            writing.write_file(Path({str(tmp_path / "report.json")!r}), str(number) * 2000)
    """)
    for delay in (0.0, 0.003, 0.007, 0.011, 0.02, 0.05):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"go\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(delay)
            child.send_signal(signal.SIGKILL)
        if swap == "by two renames":
            writing._clean(out)  # as the next run does
        assert len(set(_content(out).values())) == 1
        report = tmp_path / "report.json"
        assert not report.exists() or (len(set(report.read_text())) <= 10 and report.stat().st_size % 2000 == 0)
    _write(out)
    write_file(tmp_path / "report.json", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release", "report.json"]


def test_the_work_of_a_running_process_is_not_cleaned(tmp_path: Path) -> None:
    out = tmp_path / "release"
    with new_directory(out) as folder:
        writing._clean(out)
        assert folder.is_dir()
        (folder / "card.json").write_text("new")
    assert _content(out) == {"card.json": "new"}


def test_what_was_moved_aside_before_a_kill_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "release"
    _release(tmp_path / ".release-0a1b2c3d.zoo-old")
    with pytest.raises(BadArgumentError, match="not empty"), new_directory(out):
        raise AssertionError
    assert _content(out)["card.json"] == "old"


@pytest.mark.skipif(os.name != "posix", reason="descriptors have names there")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_an_open_descriptor_is_written_after_what_was_printed(tmp_path: Path, name: str, to: str) -> None:
    program = f"""
from pathlib import Path
from zoo.files.writing import write_file
print("table")
write_file(Path({name!r}), "figures\\n")
print("end")
"""
    home = Path(writing.__file__).parents[2]
    out = tmp_path / "out.txt"
    with out.open("w") as stream:
        target = stream if to == "file" else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", program], cwd=home, stdout=target, check=True, text=True)
    assert (out.read_text() if to == "file" else done.stdout) == "table\nfigures\nend\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_errors_name_what_was_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Not a directory|File exists") as inside_a_file:
        write_file(tmp_path / "file" / "report.json", "x")
    assert inside_a_file.value.filename.endswith("file")

    def fill(out: Path) -> None:
        with new_directory(out) as folder:
            (folder / "weights").mkdir()
            (folder / "weights").write_text("x")

    with pytest.raises(IsADirectoryError) as inside:
        fill(tmp_path / "release")
    assert inside.value.filename == str(tmp_path / "release" / "weights")
    with pytest.raises(OSError, match="No space") as full, new_file(tmp_path / "report.json"):
        raise OSError(28, "No space left on device")
    assert full.value.filename == str(tmp_path / "report.json")


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write everywhere")
def test_what_is_read_only_stays(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    file.write_text("old")
    file.chmod(0o400)
    with pytest.raises(PermissionError) as caught:
        write_file(file, "new")
    assert caught.value.filename == str(file)
    assert file.read_text() == "old"
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"new\.json'"):
        write_file(tmp_path / "new.json", "")
    with pytest.raises(PermissionError, match="release'"):
        _write(tmp_path / "release")


@pytest.mark.parametrize("name", ["~", "~/release"])
def test_a_tilde_that_the_shell_left_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadArgumentError, match="the shell left ~ as it is"):
        _write(Path(name))
    with pytest.raises(BadArgumentError, match="the shell left ~ as it is"):
        write_file(Path(name) / "card.json", "")
    assert not any(tmp_path.iterdir())


def test_the_home_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = _release(tmp_path / "users" / "home")
    monkeypatch.setenv("HOME", str(home))
    for out in (home, home.parent):
        with pytest.raises(BadArgumentError, match="home folder cannot be replaced or moved"):
            _write(out)
    with pytest.raises(BadArgumentError, match="home folder"), edited_directory(home):
        raise AssertionError
    assert _content(home)["card.json"] == "old"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have names there")
def test_a_pipe_in_a_folder_counts_as_a_file(tmp_path: Path) -> None:
    out = _release(tmp_path / "release")
    os.mkfifo(out / "pipe")
    with pytest.raises(BadArgumentError, match="did not write pipe"):
        _write(out)


def test_an_edit_does_not_write_through_links(tmp_path: Path) -> None:
    """The Hub's cache links each file to a blob, which bears the name of its content."""
    blob, folder = tmp_path / "blob", tmp_path / "bundle"
    blob.write_text("old")
    folder.mkdir()
    (folder / "policy.yaml").symlink_to(blob)
    with edited_directory(folder) as work:
        write_file(work / "policy.yaml", "new")
    assert blob.read_text() == "old"
    assert (folder / "policy.yaml").read_text() == "new"


def test_what_a_native_writer_raises_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be written") as caught, native_writer(tmp_path / "model.safetensors"):
        raise RuntimeError("basic_ios::clear: iostream error")
    assert caught.value.filename == str(tmp_path / "model.safetensors")


def test_only_what_matches_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe may keep its checkpoints in the current folder, and stand there itself."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for number in ("1", "2"):
        for name in ("best.ckpt", "recipe.yaml"):
            (folder / name).write_text(number)
        assert set_aside(Path().resolve(), "*.ckpt") == tmp_path / f"run-{number}"
        assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]
        assert (tmp_path / f"run-{number}/best.ckpt").read_text() == number


def test_what_somebody_puts_there_meanwhile_stays(tmp_path: Path) -> None:
    """An export may take hours, in which the folder of its output is not its own."""
    new, old = tmp_path / "new", _release(tmp_path / "old")

    def write(out: Path, overwrite: bool) -> None:
        with new_directory(out, overwrite=overwrite, ours=OURS) as folder:
            (folder / "card.json").write_text("new")
            out.mkdir(exist_ok=True)
            (out / "thesis.docx").write_text("years of work")

    with pytest.raises(BadArgumentError, match="exists and is not empty"):
        write(new, False)
    with pytest.raises(BadArgumentError, match=r"did not write thesis\.docx"):
        write(old, True)
    assert _content(new) == {"thesis.docx": "years of work"}
    assert _content(old)["card.json"] == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


@pytest.mark.parametrize("change", ["replaced", "written to", "added", "removed"])
def test_an_edit_does_not_undo_what_another_process_wrote_meanwhile(tmp_path: Path, change: str) -> None:
    out = _release(tmp_path / "bundle")
    card = out / "card.json"

    def edit() -> None:
        with edited_directory(out) as folder:
            write_file(folder / "model.safetensors", "new engine")
            if change == "replaced":
                write_file(card, "new policy")
            elif change == "written to":
                card.write_text("new policy")
            elif change == "added":
                (out / "other").write_text("engine")
            else:
                card.unlink()

    with pytest.raises(BadArgumentError, match="was changed by another process meanwhile"):
        edit()
    assert (out / "model.safetensors").read_text() == "old"
    assert (card.read_text() if card.exists() else "") == {"added": "old", "removed": ""}.get(change, "new policy")


def test_a_backup_with_a_name_like_those_of_killed_runs_stays(tmp_path: Path) -> None:
    backup = tmp_path / ".card.json-20240131.old"
    backup.write_text("mine")
    write_file(tmp_path / "card.json", "new")
    assert backup.read_text() == "mine"


@pytest.mark.parametrize("name", [".", ".."])
def test_the_current_folder_is_edited_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = _release(tmp_path / "bundle")
    (folder / "sub").mkdir()
    (folder / "sub" / "engine").write_text("engine")
    (folder / "manifest.json").write_text("old")
    monkeypatch.chdir(folder if name == "." else folder / "sub")
    place, kept = folder.stat().st_ino, (folder / "sub" / "engine").stat().st_ino

    def fill_the_disk() -> None:
        with edited_directory(Path(name)) as work:
            write_file(work / "card.json", "half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fill_the_disk()
    assert (folder / "card.json").read_text() == "old"
    with edited_directory(Path(name)) as work:
        write_file(work / "card.json", "new")
        write_file(work / "manifest.json", "new")
        (work / "model.safetensors").unlink()
    files = {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert files == {"card.json": "new", "manifest.json": "new", "engine": "engine"}
    assert (folder.stat().st_ino, (folder / "sub" / "engine").stat().st_ino) == (place, kept)
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "manifest.json", "sub"]


def test_a_killed_edit_of_the_current_folder_is_cleaned_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _release(tmp_path / "bundle")
    monkeypatch.chdir(folder)
    litter = folder / ".bundle-0123abcd.zoo-partial"
    shutil.copytree(folder, litter)
    with edited_directory(Path()) as work:
        assert sorted(path.name for path in work.iterdir()) == ["card.json", "model.safetensors"]
        write_file(work / "card.json", "new")
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.safetensors"]
