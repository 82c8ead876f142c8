# make app: the demo on http://127.0.0.1:7860     make test: everything CI runs
PYTHON ?= python3
VENV := .venv/bin

.PHONY: app test venv pictures
app: .venv/app-ready
	@echo "Starting TimeRipple on http://127.0.0.1:7860 (stop with Ctrl-C)"
	$(VENV)/python app.py

AXE := .venv/axe/node_modules/axe-core/axe.min.js

test: venv $(AXE)
	@sh tests/chromium.sh
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/lint-imports
	$(VENV)/mypy
	$(VENV)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

venv: .venv/dev-ready

.venv/app-ready: requirements.txt
	@echo "Preparing .venv with what the app needs (a few minutes the first time)"
	test -d .venv || $(PYTHON) -m venv .venv
	$(VENV)/pip install --quiet -r requirements.txt
	@touch $@

.venv/dev-ready: requirements.txt requirements-models.txt requirements-ray.txt requirements-peers.txt requirements-dev.txt
	@echo "Preparing .venv with runtime and development needs (a few minutes the first time)"
	test -d .venv || $(PYTHON) -m venv .venv
	$(VENV)/pip install --quiet -r requirements-dev.txt
	@touch .venv/app-ready $@

# The rules the page tests check accessibility by.
$(AXE):
	npm install --silent --no-save --no-fund --no-audit --prefix .venv/axe axe-core@4.11.0

# The pictures of the README, in assets/pictures; with LOOKS=all every width and theme, in test-artifacts.
pictures: venv
	@sh tests/chromium.sh
	PYTHONPATH=. $(VENV)/python tests/ui/pictures.py $(LOOKS)
