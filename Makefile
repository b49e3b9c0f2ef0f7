# The verbs of this repository. Each line is an ordinary command: README.md writes them out for those without make.
PYTHON ?= python3
RUN    ?= runs/demo
PY     := .venv/bin/python
PIP    := $(PY) -m pip install -q --disable-pip-version-check --no-compile

.PHONY: demo demo-model test branches export notebooks site pdf release bench clean

# Each module is compiled once and kept: where an environment forbids that, every process compiles torch for itself.
unexport PYTHONDONTWRITEBYTECODE

# Some systems' Python cannot make an environment with pip in it; uv can, where it is installed.
# Nothing is compiled beforehand: Python does that with what is imported, which is a small part of it. torch is as large as all the rest, so two
# pips work side by side; the next line finds all in place but what torch needs on a machine with a GPU.
.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv || uv venv --clear --seed --python $(PYTHON) .venv
	$(PIP) --no-deps $$(grep ^torch== requirements.txt) & torch=$$!; grep -v ^torch== requirements.txt | $(PIP) --no-deps -r /dev/stdin && wait $$torch
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

# The main job: from nothing to a model that speaks. A second run finds its files and goes straight to the last lines.
demo: $(RUN)/train.bin
	$(PY) -m llm_course.training --train_data $(RUN)/train.bin --val_data $(RUN)/val.bin --output $(RUN) $(RECIPE) --resume
	$(PY) -m llm_course.generating --model_path $(RUN)/checkpoint.pt --prompt "ROMEO:" --max_tokens 200 --temperature 0.8 --top_p 0.9 --seed 0
	@echo
	@echo "Look at $(RUN)/loss.svg for the loss curve, at nbs/17_training.ipynb for the loop that made it, and change the recipe:"
	@echo "  $(PY) -m llm_course.training --help"

# The recipe of bench/nanogpt.py for a longer text, with rows twice as long and half as many.
RECIPE := --d_model 128 --num_layers 3 --num_heads 4 --d_ff 352 --max_seq_len 128 --batch_size 12 --order epochs --iterations 1000 \
  --lr_max 1.2e-2 --muon_lr 0.02 --lr_min 0 --decay line --weight_decay 0.3 --num_threads 1 --val_interval 100 --checkpoint_interval 250

$(RUN)/train.txt: | .venv/installed
	$(PY) -m llm_course.data --fetch shakespeare --output $(RUN)

$(RUN)/tokenizer.json: $(RUN)/train.txt
	$(PY) -m llm_course.bpe_tokenizer --corpus $(RUN)/train.txt --vocab_size 1024 --output $@

$(RUN)/train.bin: $(RUN)/tokenizer.json
	$(PY) -m llm_course.data --tokenizer $< --corpus $(RUN)/train.txt --val_corpus $(RUN)/val.txt --output $(RUN)

# The small model that the package carries, so that notebooks and an installed package have one at hand.
demo-model: demo
	$(PY) -m llm_course.checkpoint --model_path $(RUN)/checkpoint.pt --output llm_course/demo/model.safetensors
	cp $(RUN)/tokenizer.json $(RUN)/loss.svg llm_course/demo/

# One thread: the pages' models are small, and threads that wait for each other are slow on a busy machine.
test branches notebooks: export OMP_NUM_THREADS := 1
test: .venv/installed
	$(PY) web/colab.py
	.venv/bin/nbdev_export
	.venv/bin/nbdev_clean
	$(PY) web/your_turn.py
	$(PY) web/references.py
	git diff --exit-code
	.venv/bin/ruff check
	.venv/bin/mypy & types=$$!; $(PY) tests/installed.py && wait $$types
	.venv/bin/pytest -n 3 --dist worksteal

# Watch which branches the tests take, all of them or `TESTS=tests/test_x.py`: tests/branches/__main__.py says more. A test that the watch disturbs may fail here; `make test` decides.
branches: .venv/installed
	rm -rf .branches
	-PYTHONPATH=$(CURDIR)/tests/branches LLM_COURSE_BRANCHES=$(CURDIR)/.branches .venv/bin/pytest -n 3 --dist worksteal -o addopts="-q --strict-markers" $(TESTS)
	$(PY) tests/branches --saw .branches $(if $(TESTS),,--all)

export: .venv/installed
	$(PY) web/colab.py
	.venv/bin/nbdev_export
	.venv/bin/nbdev_clean
	$(PY) web/your_turn.py
	$(PY) web/references.py

# Execute every notebook and keep what it shows.
notebooks: export
	.venv/bin/jupyter execute --inplace $$($(PY) web/book.py)
	.venv/bin/nbdev_clean

# With Quarto where it is installed, else with pandoc.
site: .venv/installed
	$(PY) web/render.py

# The whole book in one file: Chromium prints the pages that pandoc makes.
pdf: .venv/installed
	$(PY) web/render.py --pandoc
	$(PY) web/pdf.py --output _book/llm_course.pdf

# All that a release consists of: the site in _docs/, the PDF in _book/, the wheel and the source archive in dist/.
release: pdf
	rm -rf dist
	$(PY) -m build

bench: .venv/installed
	$(PY) -m bench
	$(PY) -m bench.table

clean:
	rm -rf .venv .branches runs _proc _docs _book build dist *.egg-info
