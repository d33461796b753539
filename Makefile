# The two commands of the README. Both create .venv and install into it what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
QUICK := not slow and not gpu and not network
PROCESSES ?= 2

.PHONY: demo test docs format audit release clean

demo: $(VENV)/.installed  ## the whole pipeline on drawn cells, to a target FPS on this CPU
	@test -d $(DEMO)/cells || $(BIN)/heat data cells $(DEMO)/cells > /dev/null
	$(BIN)/heat build --data $(DEMO)/cells --target-fps 100 --threads 1 --minutes 5 \
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
	$(BIN)/mypy
	$(BIN)/pytest -m "$(QUICK) and not alone" --numprocesses $(PROCESSES) --dist loadfile
	$(BIN)/pytest -m "$(QUICK) and alone" $$(grep -l "mark.alone" tests/test_*.py)

docs: $(VENV)/.installed  ## the pages of docs/, into build/docs; dead links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "docs: build/docs/index.html  (search works where a server serves them: mkdocs serve)"

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

audit: $(VENV)/.installed  ## known vulnerabilities and licences of the packages
	$(BIN)/python -m pip install --quiet pip-audit || true
	$(BIN)/python benchmarks/audit.py

release: $(VENV)/.installed  ## build sdist and wheel, install them elsewhere, use them
	$(BIN)/python benchmarks/release.py --out dist

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) heat-run build dist *.egg-info
