"""All tasks of a plan: simulate, train, measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper import commands
from benchmarks.paper.pdfs import score
from benchmarks.paper.plan import Plan, Training
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
    trainings = [one for one in plan.trainings if one.data in steps.simulated]
    main = [one for one in trainings if one.group == "main"]
    first, others = main[:2], main[2:]  # the standard CNN and the adversarial one
    found = [steps.simulated["train"], steps.simulated["test"]]
    found += [task for one in first for task in (*steps.train(one), *steps.pdfs(one))]
    found += [steps.neighbours(first[0]), steps.limit()]
    found += [task for one in first for task in steps.curves(one)]
    found += [task for one in others for task in (*steps.train(one), *steps.pdfs(one))]
    found.append(steps.transfer(main))
    found += [task for one in others for task in steps.curves(one)]
    found += [task for one in main for task in steps.masking(one)]
    for one in trainings:
        if one.group != "main":
            found += [steps.simulated[one.data], steps.simulated[steps.test_set(one)]]
            found += [*steps.train(one), *steps.pdfs(one), *steps.curves(one)]
    return list({task.name: task for task in found}.values())


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

    @staticmethod
    def test_set(training: Training) -> str:
        """Name of the set that a network is measured on."""
        return "sky-test" if training.group == "sky" else "test"

    def train(self, training: Training) -> list[Task]:
        """Trainings with all seeds."""
        found = {training.run(seed): self._train(training, seed) for seed in self.plan.seeds}
        self._trained |= found
        return list(found.values())

    def pdfs(self, training: Training) -> list[Task]:
        """Metrics on all test galaxies, of each seed; of main networks also calibrated and as an ensemble."""
        test, runs = self.test_set(training), self._runs(training)
        found = [self._pdfs(f"pdfs-{run}", [run], test) for run in runs]
        if training.group == "main":
            data = self.place.data(training.data, self.plan)
            single = [self._pdfs(f"calibrated-{run}", [run], test, calibrate_on=data) for run in runs]
            name = f"{training.name}-ensemble"
            found += [*single, self._pdfs(f"pdfs-{name}", runs, test, tta=True)]
            # A run folder holds the calibrations of the run and of the ensemble: one after the other.
            after = single[:1]
            found.append(
                self._pdfs(f"calibrated-{name}", runs, test, tta=True, calibrate_on=data, after=after)
            )
        return found

    def curves(self, training: Training) -> list[Task]:
        """Metrics against epsilon under three attacks; of the surface under APGD at one epsilon."""
        plan, surface = self.plan, training.group == "surface"
        how = {
            "attacks": ["apgd"] if surface else METHODS,
            "eps": [plan.headline] if surface else plan.eps,
            **{"headline-eps": plan.headline, "steps": plan.steps, "limit": plan.curve_objects},
        }
        test = self.test_set(training)
        return [self._measured(f"curves-{run}", [run], test, how) for run in self._runs(training)]

    def masking(self, training: Training) -> list[Task]:
        """The checks of `evaluate --check-masking`: is APGD as strong as PGD, do gradients vanish?"""
        number, eps = self.plan.masking_objects, self.plan.headline
        how = {"attacks": ["fgsm"], "eps": [eps], "headline-eps": eps, "limit": number}
        how |= {"check-masking": number}
        return [self._measured(f"masking-{run}", [run], "test", how) for run in self._runs(training)]

    def _runs(self, training: Training) -> list[str]:
        return [training.run(seed) for seed in self.plan.seeds]

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

    def transfer(self, trainings: Sequence[Training]) -> Task:
        """Images made against each run, given to all others."""
        plan = self.plan
        runs = [run for one in trainings for run in self._runs(one)]
        how = {"attacks": ["apgd"], "eps": [plan.headline], "headline-eps": plan.headline}
        how |= {"steps": plan.steps, "limit": plan.transfer_objects}
        return self._measured("transfer", runs, "test", how)

    def _pdfs(
        self,
        name: str,
        runs: Sequence[str],
        test: str,
        *,
        tta: bool = False,
        calibrate_on: Path | None = None,
        after: Sequence[Task] = (),
    ) -> Task:
        out = self.place.out / "pdfs" / f"{name}.hdf5"

        def work() -> Found:
            folders = [self.place.run(run) for run in runs]
            data = self.place.data(test, self.plan)
            commands.predict(folders, data, out, tta=tta, calibrate_on=calibrate_on)
            return score(out)

        settings = {"tta": tta, "runs": list(runs), **({"calibrated": True} if calibrate_on else {})}
        return Task(
            name, settings, work, [*(self._trained[run] for run in runs), self.simulated[test], *after]
        )

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

    def limit(self) -> Task:
        """The redshift error that the pixels of test galaxies allow."""
        plan = self.plan
        galaxies, objects = plan.sets["test"], plan.limit_objects
        out = self.place.out / "reports/limit.json"
        settings = {"objects": objects, "seed": galaxies.seed}
        return Task("limit", settings, lambda: commands.limit(galaxies, objects, out))


def _words(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]


def _figures(tree: Found, runs: Sequence[str]) -> Found:
    """What is kept of `metrics.json`: metrics by run and method, epsilon 0 first; transfer and masking."""

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
    masking = tree.get("masking", {}).get("networks", {})
    further = {"transfer": transfer, "masking": masking}
    return {"curves": curves, **{key: value for key, value in further.items() if value}}
