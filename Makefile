# The two commands of the README. Both create .venv and install into it what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
QUICK := not slow and not gpu and not network
PROCESSES ?= 2
LOWEST ?= python3.11
NEWEST ?= $(shell for v in 3.14 3.13 3.12; do command -v python$$v && break; done)
COVERED ?= tests

# Compiled modules are kept even where the environment says not to: the tests start many processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test docs coverage test-lowest test-newest format audit release clean

demo: $(VENV)/.installed  ## the whole pipeline on drawn cells, to a target FPS on this CPU
	@test -d $(DEMO)/cells || $(BIN)/heat data cells $(DEMO)/cells > /dev/null
	$(BIN)/heat build --data $(DEMO)/cells --target-fps 100 --threads 1 --minutes 7 \
		--out $(DEMO)/run > $(DEMO)/result.json
	$(BIN)/heat detect $(DEMO)/run/bundle-onnx $(DEMO)/cells/val --save $(DEMO)/detections \
		> $(DEMO)/detections.json
	@echo
	@echo "bundle:      $(DEMO)/run/bundle-onnx  (python detect.py IMAGE runs it without heat)"
	@echo "report:      $(DEMO)/run/report.html"
	@echo "detections:  $(DEMO)/detections"

test: $(VENV)/.installed  ## every check: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers $(PROCESSES)
	$(BIN)/pytest -m "$(QUICK) and not alone" --numprocesses $(PROCESSES) --dist loadfile
	$(BIN)/pytest -m "$(QUICK) and alone" $$(grep -l "mark.alone" tests/test_*.py)

docs: $(VENV)/.installed  ## the pages of docs/, into build/docs; dead links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "docs: build/docs/index.html  (search works where a server serves them: mkdocs serve)"

coverage: $(VENV)/.installed  ## branch coverage of the four packages, processes included
	$(BIN)/python -m pip install --quiet "coverage>=7.10"
	rm -f .coverage .coverage.*
	mkdir -p build
	$(BIN)/python -m coverage run -m pytest -m "$(QUICK)" $(COVERED)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage json --quiet -o build/coverage.json
	PYTHONPATH=. $(BIN)/python benchmarks/trust.py --coverage build/coverage.json --name coverage
	$(BIN)/python -m coverage report --skip-covered

# The same tests in environments of their own: the lowest versions that pyproject.toml allows, and
# the newest ones on the newest Python. LOWEST and NEWEST name the Pythons. What passed is kept in
# benchmarks/results/.
test-lowest:
	$(LOWEST) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct \
		--editable ".[dev]"
	.venv-lowest/bin/python -m pytest -m "$(QUICK) and not alone" --numprocesses $(PROCESSES) \
		--junitxml build/lowest.xml; code=$$?; PYTHONPATH=. .venv-lowest/bin/python \
		benchmarks/trust.py --tests build/lowest.xml --name tests-lowest; exit $$code

test-newest:
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --editable ".[dev]"
	.venv-newest/bin/python -m pytest -m "$(QUICK) and not alone" --numprocesses $(PROCESSES) \
		--junitxml build/newest.xml; code=$$?; PYTHONPATH=. .venv-newest/bin/python \
		benchmarks/trust.py --tests build/newest.xml --name tests-newest; exit $$code

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

audit: $(VENV)/.installed  ## known vulnerabilities and licences of the packages
	$(BIN)/python -m pip install --quiet pip-audit || true
	$(BIN)/python benchmarks/audit.py

release: $(VENV)/.installed  ## build sdist and wheel, install them elsewhere, use them
	PYTHONPATH=. $(BIN)/python benchmarks/release.py --out dist --name release

# Modules are compiled when they are imported: compiling all that torch brings takes half a minute.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt \
		--editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest $(DEMO) heat-run build dist *.egg-info .coverage*
