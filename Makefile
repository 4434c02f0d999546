# make demo: the whole method on images drawn by code.   make test: lint, type check and all tests.
# make reproduce: the published tables on PASCAL VOC, on a GPU; ARGS='--preset all --moco PATH --seeds 1 2 3'.
# make test-gpu: the tests that need an NVIDIA GPU (with two of them also NCCL).
# All make .venv and install into it on the first call.   make PYTHON=python3.12 demo chooses the Python.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python
PIP     = $(RUN) -m pip install --quiet --disable-pip-version-check
DEMO   := results/demo

.PHONY: demo reproduce test test-gpu install clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-dev.txt
	@echo '== Installing into $(VENV) (once; PyTorch is large, this takes a few minutes)'
	$(RUN) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	grep -v '^pydensecrf2' requirements.txt | $(PIP) -r /dev/stdin -r requirements-dev.txt
	@echo '== Building the CRF (pydensecrf2)'
	grep '^pydensecrf2' requirements.txt | $(PIP) -r /dev/stdin \
	  || echo '== pydensecrf2 is missing: it could not be built (is there a C++ compiler?). Everything but' \
	    '--crf-postprocess works; with a compiler, make -B install builds it'
	touch $@

test: install
	@echo '== Lint'
	$(BIN)/ruff check .
	@echo '== Type check'
	$(BIN)/mypy
	@echo '== Tests'
	$(RUN) -m pytest -rs

test-gpu: install
	$(RUN) -m pytest -m gpu -rs

demo: install
	$(RUN) experiments/demo.py --output $(DEMO)

reproduce: install
	mkdir -p datasets
	$(RUN) experiments/reproduce.py $(ARGS)

# segmentation/predict.py on the drawn images, taken as a folder without labels
docs/own_images.png: OWN := $(DEMO)/own_images
docs/own_images.png: $(DEMO)/pretrain/checkpoint.pth.tar
	rm -rf $(OWN)
	mkdir -p docs $(OWN)
	ln -sfn ../data/Shapes/images $(OWN)/images
	$(RUN) segmentation/kmeans.py --config_env configs/own_images/env.yml --config_exp configs/own_images/kmeans.yml \
	  --num_clusters 5-10 --set db_root=$(OWN) root_dir=$(OWN) pretraining=$< backbone=resnet18 model_kwargs.ndim=8 \
	  val_size=60 saliency=network
	$(RUN) segmentation/predict.py --images $(OWN)/images --output $(OWN)/predicted --model $(OWN)/kmeans/clusters.pth.tar
	cp $(OWN)/predicted/contact_sheet.png $@

clean:
	rm -rf $(DEMO)
