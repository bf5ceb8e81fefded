"""All tasks of a plan: simulate, train, measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper import commands
from benchmarks.paper.pdfs import score
from benchmarks.paper.plan import STANDARD, Plan, Training
from benchmarks.paper.tasks import Found, Task
from hpcphotoz.data.format.manifest import MANIFEST, read_manifest

METHODS = ("fgsm", "pgd", "apgd")
_METRICS = ("bias", "sigma_mad", "eta", "crps", "n")


@dataclass(frozen=True)
class Place:
    """Where everything is.

    Attributes:
        out: folder of the program.
        frames: folder with the real sky; None: there is none.
    """

    out: Path
    frames: Path | None

    def data(self, name: str, plan: Plan) -> Path:
        """Folder of a simulated set."""
        return self.out / "data" / f"{name}-{plan.sets[name].objects}"

    def run(self, name: str) -> Path:
        """A run folder."""
        return self.out / "runs" / name

    @property
    def done(self) -> Path:
        """Folder of the tasks' files."""
        return self.out / "done"


def all_tasks(plan: Plan, place: Place) -> list[Task]:
    """The tasks of a plan, in the order of their importance; without frames none in real sky."""
    steps = _Steps(plan, place)
    found = [steps.simulated["train"], steps.simulated["test"]]
    for training in plan.trainings:
        if training.data in steps.simulated:
            found += steps.of_training(training)
        if training.name == STANDARD:
            found.append(steps.neighbours(training))
        if training.group == "main" and training == _last_main(plan):
            found.append(steps.transfer())
    return list({task.name: task for task in found}.values())


def _last_main(plan: Plan) -> Training:
    return [one for one in plan.trainings if one.group == "main"][-1]


class _Steps:
    """Makes the tasks."""

    def __init__(self, plan: Plan, place: Place) -> None:
        self.plan, self.place = plan, place
        self.simulated = {
            name: self._simulate(name)
            for name, one in plan.sets.items()
            if place.frames is not None or not one.in_real_sky
        }
        self._trained: dict[str, Task] = {}

    def of_training(self, training: Training) -> list[Task]:
        """Trainings with all seeds, then what is measured of them."""
        sky = training.group == "sky"
        test = "sky-test" if sky else "test"
        found = [self.simulated[training.data], self.simulated[test]] if sky else []
        names = [training.run(seed) for seed in self.plan.seeds]
        for seed, name in zip(self.plan.seeds, names, strict=True):
            self._trained[name] = self._train(training, seed)
            found.append(self._trained[name])
        found += [self._pdfs(f"pdfs-{name}", [name], test, tta=False) for name in names]
        if training.group == "main":
            found.append(self._pdfs(f"pdfs-{training.name}-ensemble", names, test, tta=True))
        for name in names:
            found.append(self._trade_off(name) if training.group == "surface" else self._curves(name, test))
        if training.group == "main":
            found += [self._strong(name) for name in names]
        return found

    def _simulate(self, name: str) -> Task:
        galaxies, out = self.plan.sets[name], self.place.data(name, self.plan)

        def work() -> Found:
            if not (out / MANIFEST).is_file():
                commands.simulate(galaxies, self.place.frames, out)
            made = read_manifest(out)
            if (made.rows, made.provenance.get("seed")) != (galaxies.objects, galaxies.seed):
                raise RuntimeError(f"{out}: not the {galaxies.objects} galaxies of seed {galaxies.seed}")
            return {"objects": made.rows, "manifest_sha256": made.sha256}

        settings = {"objects": galaxies.objects, "seed": galaxies.seed, "real_sky": galaxies.in_real_sky}
        return Task(f"data-{name}", settings, work)

    def _train(self, training: Training, seed: int) -> Task:
        data = self.place.data(training.data, self.plan)

        def work() -> Found:
            return commands.train(training, seed, data, self.place.out / "runs")

        settings = {"data": training.data, "options": training.settings(seed)}
        return Task(f"train-{training.run(seed)}", settings, work, [self.simulated[training.data]])

    def _measured(self, name: str, runs: Sequence[str], test: str, settings: Mapping[str, Any]) -> Task:
        needs = [self._trained[run] for run in runs]
        words = [word for key, value in settings.items() for word in (f"--{key}", *_words(value))]

        def work() -> Found:
            folders, data = [self.place.run(run) for run in runs], self.place.data(test, self.plan)
            tree = commands.evaluate(folders, data, self.place.out / "reports" / name, *words)
            return _figures(tree, runs)

        return Task(name, settings, work, [*needs, self.simulated[test]])

    def _curves(self, run: str, test: str) -> Task:
        plan = self.plan
        how = {"attacks": METHODS, "eps": plan.eps, "headline-eps": plan.headline, "steps": plan.steps}
        return self._measured(f"curves-{run}", [run], test, {**how, "limit": plan.curve_objects})

    def _trade_off(self, run: str) -> Task:
        how = {"attacks": ["apgd"], "eps": [self.plan.headline], "headline-eps": self.plan.headline}
        how |= {"steps": self.plan.steps, "limit": self.plan.curve_objects}
        return self._measured(f"curves-{run}", [run], "test", how)

    def _strong(self, run: str) -> Task:
        plan = self.plan
        how = {"attacks": ["pgd", "apgd"], "eps": [plan.headline], "headline-eps": plan.headline}
        how |= {"steps": plan.strong_steps, "restarts": plan.restarts, "limit": plan.strong_objects}
        return self._measured(f"strong-{run}", [run], "test", how)

    def transfer(self) -> Task:
        """Images made against each main network, given to all others."""
        plan = self.plan
        runs = [one.run(seed) for one in plan.trainings if one.group == "main" for seed in plan.seeds]
        how = {"attacks": ["apgd"], "eps": [plan.headline], "headline-eps": plan.headline}
        how |= {"steps": plan.steps, "limit": plan.transfer_objects}
        return self._measured("transfer", runs, "test", how)

    def _pdfs(self, name: str, runs: Sequence[str], test: str, *, tta: bool) -> Task:
        out = self.place.out / "pdfs" / f"{name}.hdf5"

        def work() -> Found:
            folders = [self.place.run(run) for run in runs]
            commands.predict(folders, self.place.data(test, self.plan), out, tta=tta)
            return score(out)

        needs = [*(self._trained[run] for run in runs), self.simulated[test]]
        return Task(name, {"tta": tta, "runs": list(runs)}, work, needs)

    def neighbours(self, training: Training) -> Task:
        """Nearest neighbours, clean and under the attack on the first seed of a network."""
        plan, run = self.plan, training.run(self.plan.seeds[0])
        how = {"eps": list(plan.eps), "steps": plan.steps, "objects": plan.curve_objects}
        words = [word for key, value in how.items() for word in (f"--{key}", *_words(value))]

        def work() -> Found:
            data = [self.place.data(name, plan) for name in ("train", "test")]
            out = self.place.out / "reports/neighbours.json"
            return commands.knn_under_attack(self.place.run(run), *data, out, *words)

        return Task("neighbours", {**how, "run": run}, work, [self._trained[run], self.simulated["test"]])


def _words(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]


def _figures(tree: Found, runs: Sequence[str]) -> Found:
    """What is kept of `metrics.json`: for each run the metrics by method, epsilon 0 first; and transfer."""

    def kept(condition: Mapping[str, float]) -> dict[str, float]:
        return {"eps": condition["eps_sky_sigma"], **{key: condition[key] for key in _METRICS}}

    curves = {
        run: {method: [kept(one) for one in each] for method, each in tree["robustness_curves"][run].items()}
        for run in runs
    }
    transfer = {
        source: {target: {key: found[key] for key in _METRICS} for target, found in targets.items()}
        for source, targets in tree["transfer"].items()
    }
    return {"curves": curves, **({"transfer": transfer} if transfer else {})}
