"""Which versions of which models are served, loaded and let go as TF Serving does it.

A folder of versions ``1``, ``2``, ... is looked at every second. A new version is loaded, and answers the requests it
brought for warming up, before the one before it goes; and that goes when nobody uses it any more. A version that cannot
be loaded is said so, and the one before it stays.
"""

import contextlib
import dataclasses
import pathlib
import threading

from c_api import SavedModel, TensorFlowError, version_folders

STATES = {"START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50}  # of TF Serving's API
NOT_FOUND, INVALID, UNKNOWN = 5, 3, 2  # codes of TensorFlow and gRPC


class NotServedError(Exception):
    """There is no such model or version, or it is not available."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A model that is to be served.

    Args:
        name: str, in addresses.
        path: pathlib.Path of a folder of version folders, or of one SavedModel.
        latest: int >= 1, how many versions, the highest ones; None for all.
        specific: tuple of ints, the versions; empty for those of ``latest``.
        labels: dict from names to versions.
    """

    name: str
    path: pathlib.Path
    latest: int | None = 1
    specific: tuple = ()
    labels: dict = dataclasses.field(default_factory=dict)

    def folders(self):
        """Folders of the versions that are there and are to be served, by number."""
        there = version_folders(self.path)
        if (self.path / "saved_model.pb").is_file():  # one version alone, whatever the policy
            return there
        if self.specific:
            numbers = [number for number in self.specific if number in there]
        else:
            numbers = sorted(there)[-self.latest if self.latest else None :]
        return {number: there[number] for number in numbers}


class Version:
    """A version of a model and who uses it."""

    def __init__(self, folder, stamp):
        self.folder, self.stamp = folder, stamp
        self.state, self.code, self.message = "START", 0, ""
        self.model, self.users = None, 0


class Models:
    """The models that are served.

    Args:
        configs: list of Config.
        warm_up: callable of a SavedModel and its folder, or None, that raises an error for a version that is not to be
            served.
    """

    def __init__(self, configs, warm_up=None):
        self._warm_up = warm_up
        self._lock = threading.Condition()  # of all that follows
        self._configs, self._labels, self._versions = {}, {}, {}
        self._looking = threading.Lock()  # one look at a time
        self._closed = threading.Event()
        self.configure(configs)

    def configure(self, configs):
        """Serve these models instead, and load what is there; as in TF Serving, labels change all or none.

        Raises:
            ValueError: for two models of one name and folders that are none, before anything changes; and for labels
                of versions that are not available afterwards: the models are served then, under the labels of before.
        """
        by_name = {config.name: config for config in configs}
        if len(by_name) != len(configs):
            raise ValueError(f"Expected models of different names; received {[config.name for config in configs]}.")
        for config in configs:
            if not config.name or not config.path.is_dir():
                raise ValueError(f"Expected a name and a folder; received {config.name!r} and {config.path}.")
        with self._lock:
            self._configs = by_name
        self.look()
        for config in configs:
            for label, number in config.labels.items():
                with self._lock:
                    version = self._versions.get(config.name, {}).get(number)
                    if version is None or version.state != "AVAILABLE":
                        raise ValueError(
                            f"Expected the label {label!r} to name a version of {config.name} that is available; "
                            f"received {number}."
                        )
        with self._lock:
            self._labels = {config.name: config.labels for config in configs}

    @property
    def names(self):
        with self._lock:
            return list(self._configs)

    def look(self):
        """Load the versions that are new, and let those go that are not served any more."""
        with self._looking:
            with self._lock:
                configs = dict(self._configs)
            for name in {*configs, *self._versions}:
                folders = configs[name].folders() if name in configs else {}
                self._load_new(name, folders)
                self._let_go(name, folders)

    def watch(self, seconds):
        """Look every so many seconds, in a thread, until ``close``."""

        def look():
            while not self._closed.wait(seconds):
                self.look()

        threading.Thread(target=look, daemon=True).start()

    def close(self):
        """Stop looking, and free all models."""
        self._closed.set()
        with self._lock:
            self._configs = {}
        self.look()

    @contextlib.contextmanager
    def use(self, name, number=None, label=None):
        """``(number, SavedModel)`` of a version, the highest one if neither it nor a label is given.

        Raises:
            NotServedError: if there is none that is available.
        """
        with self._lock:
            number, version = self._available(name, number, label)
            version.users += 1
        try:
            yield number, version.model
        finally:
            with self._lock:
                version.users -= 1
                self._lock.notify_all()

    def states(self, name, number=None, label=None):
        """Tuples ``(number, state, code, message)`` of the versions of a model, the highest first.

        Raises:
            NotServedError: if there are none.
        """
        with self._lock:
            self._known(name)
            number = number if label is None else self._labelled(name, label)
            versions = sorted(self._versions.get(name, {}).items(), reverse=True)
            states = [(k, v.state, v.code, v.message) for k, v in versions if number in (None, k)]
        if not states:
            raise NotServedError(f"Could not find {'any versions' if number is None else number} of model {name}.")
        return states

    def _known(self, name):
        if name not in self._configs:
            served = ", ".join(self._configs)
            raise NotServedError(f"Could not find model {name!r}; served are {served}.")

    def _labelled(self, name, label):
        labels = self._labels.get(name, {})
        if label not in labels:
            raise NotServedError(f"Model {name} has no version of label {label!r}; it has {sorted(labels)}.")
        return labels[label]

    def _available(self, name, number, label):
        self._known(name)
        number = number if label is None else self._labelled(name, label)
        there = {k: v for k, v in self._versions.get(name, {}).items() if v.state == "AVAILABLE"}
        if not there or number not in (None, *there):
            said = "any version" if number is None else f"version {number}"
            raise NotServedError(f"Could not find {said} of model {name} that is available; those are {sorted(there)}.")
        number = max(there) if number is None else number
        return number, there[number]

    def _load_new(self, name, folders):
        for number, folder in sorted(folders.items()):
            with self._lock:
                versions = self._versions.setdefault(name, {})
                stamp = _stamp(folder)
                old = versions.get(number)
                if old is not None and (old.state == "AVAILABLE" or old.stamp == stamp):
                    continue  # one that failed is tried again when its files are others
                version = versions[number] = Version(folder, stamp)
                version.state = "LOADING"
            try:
                model = SavedModel(folder)
                if self._warm_up is not None:
                    self._warm_up(model, folder)
            except (TensorFlowError, ValueError, OSError) as error:
                with self._lock:
                    version.state, version.message = "END", str(error)
                    version.code = getattr(error, "code", UNKNOWN)
                continue
            with self._lock:
                version.model, version.state = model, "AVAILABLE"

    def _let_go(self, name, folders):
        with self._lock:
            versions = self._versions.get(name, {})
            available = {number for number, version in versions.items() if version.state == "AVAILABLE"}
            if folders and not available & set(folders):  # none of the new ones can be used, so the old ones stay
                return
            leaving = [number for number in versions if number not in folders]
            for number in leaving:
                versions[number].state = "UNLOADING"
        for number in leaving:
            with self._lock:
                version = versions[number]
                self._lock.wait_for(lambda version=version: not version.users)
                if version.model is not None:
                    version.model.close()
                    version.model = None
                del versions[number]
                if not versions and name not in self._configs:
                    del self._versions[name]


def _stamp(folder):
    """What changes when the files of a version do."""
    files = (folder / "saved_model.pb", *sorted((folder / "variables").glob("*")))
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())
