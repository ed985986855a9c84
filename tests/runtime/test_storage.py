"""Ray Train's state goes where the run is: a directory, or an object store that only fsspec knows how to reach."""

import pytest
from toy_units import toys

from raydd.runtime.storage import train_storage


def test_a_local_place_is_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train_storage("run/state") == {"storage_path": str(tmp_path / "run" / "state")}


def test_any_other_place_is_reached_through_fsspec():
    given = train_storage("memory://run/state")
    given["storage_filesystem"].create_dir(given["storage_path"])
    with given["storage_filesystem"].open_output_stream(f"{given['storage_path']}/file") as stream:
        stream.write(b"content")
    from raydd.store import filesystem as files

    assert files.read_bytes("memory://run/state/file") == b"content"
    files.remove_tree("memory://run")


@pytest.mark.ray
def test_units_run_with_their_state_in_an_object_store(no_ray, tmp_path, monkeypatch):
    """Workers reach the store by the environment that their Ray was started in."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    from raydd.runtime.execute import run_units
    from raydd.runtime.work import Resources

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        settings = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}
        for name, value in (settings | {"DEFAULT_REGION": "us-east-1"}).items():
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        # The stand-in keeps its buckets for the whole process: other tests have theirs.
        s3fs.S3FileSystem().mkdir("units")
        import toy_units

        no_ray.cloudpickle.register_pickle_by_value(toy_units)
        units = toys(tmp_path, a="ok", b="ok")
        run_units(units, Resources(), "toys", storage="s3://units/run/state")
        assert all(unit.is_done() for unit in units)
    finally:
        no_ray.shutdown()
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
