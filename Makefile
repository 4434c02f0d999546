# make demo: the whole method on images drawn by code.   make test: lint, type check and all tests.
# make test-gpu: the tests that need an NVIDIA GPU (with two of them also NCCL).
# All make .venv and install into it on the first call.   make PYTHON=python3.12 demo chooses the Python.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python
PIP     = $(RUN) -m pip install --quiet --disable-pip-version-check
DEMO   := results/demo
ENV    := --config_env configs/demo/env.yml --config_exp configs/demo

# the demo's evaluations: "before" is the same encoder with its initial weights
LINEAR     := linear/before linear/after
PROTOTYPES := $(foreach task,kmeans retrieval,$(addprefix $(task)/,before-embedding before-backbone after-given after))
SET-before           := pretraining=pretrain_before/checkpoint.pth.tar
SET-before-embedding := $(SET-before) saliency=supervised_model
SET-before-backbone  := $(SET-before) saliency=supervised_model features=backbone
SET-after            := pretraining=pretrain/checkpoint.pth.tar
SET-after-given      := $(SET-after) saliency=supervised_model
NOTE := 'The same encoder before and after pretraining without labels. Before: the better of its embedding and its \
  backbone features. Before and after, K-means and retrieval have the exact masks (so that the background is always \
  right); the last column has the masks that the trained network predicts.'

.PHONY: demo test test-gpu install clean $(LINEAR) $(PROTOTYPES)

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
	@echo '== Drawing the data set'
	$(RUN) experiments/shapes.py --output $(DEMO)/data/Shapes
	@echo '== Pretraining, without labels'
	$(RUN) pretrain/main.py $(ENV)/pretrain.yml
	@echo '== The same encoder before pretraining'
	$(RUN) pretrain/main.py $(ENV)/pretrain.yml --set epochs=0 output_dir=pretrain_before
	@echo '== The protocols, before and after pretraining, two at a time (logs: $(DEMO)/*/log.txt)'
	@OMP_NUM_THREADS=$$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 )) TQDM_DISABLE=1 \
	  $(MAKE) --no-print-directory -j2 $(LINEAR) $(PROTOTYPES)
	@echo '== Before and after pretraining'
	$(RUN) segmentation/table.py --output $(DEMO) --pictures $(DEMO)/kmeans-after/visualizations \
	  --pretraining $(DEMO)/pretrain --note $(NOTE) \
	  --column before $(DEMO)/linear-before-eval $(foreach task,kmeans retrieval,$(DEMO)/$(task)-before-embedding \
	    $(DEMO)/$(task)-before-backbone) \
	  --column after $(DEMO)/linear-after-eval $(DEMO)/kmeans-after-given $(DEMO)/retrieval-after-given \
	  --column 'after, with its own masks' $(DEMO)/kmeans-after $(DEMO)/retrieval-after
	@echo '== The whole story, with pictures: open $(DEMO)/report.html in a browser'

$(LINEAR):
	@echo '   $@'
	@$(RUN) segmentation/$(@D)_finetune.py $(ENV)/$(@D)_finetune.yml --set $(SET-$(@F)) output_dir=$(@D)-$(@F) \
	  > /dev/null
	@crf=; $(RUN) -c 'import pydensecrf' 2>/dev/null && crf=--crf-postprocess; \
	  $(RUN) segmentation/eval.py $(ENV)/$(@D)_finetune.yml $$crf --set output_dir=$(@D)-$(@F)-eval \
	    --state-dict $(DEMO)/$(@D)-$(@F)/best_model.pth.tar > /dev/null

$(PROTOTYPES):
	@echo '   $@'
	@$(RUN) segmentation/$(@D).py $(ENV)/$(@D).yml --set $(SET-$(@F)) output_dir=$(@D)-$(@F) > /dev/null

# segmentation/predict.py on the drawn images, taken as a plain folder without labels
docs/own_images.png: OWN := $(DEMO)/own_images
docs/own_images.png: $(DEMO)/pretrain/checkpoint.pth.tar
	rm -rf $(OWN)
	mkdir -p docs $(OWN)
	ln -sfn ../data/Shapes/images $(OWN)/images
	$(RUN) segmentation/kmeans.py --config_env configs/own_images/env.yml --config_exp configs/own_images/kmeans.yml \
	  --num_clusters 5-10 --set db_root=$(OWN) root_dir=$(OWN) pretraining=$< backbone=resnet18 model_kwargs.ndim=4 \
	  val_size=80
	$(RUN) segmentation/predict.py --images $(OWN)/images --output $(OWN)/predicted --model $(OWN)/kmeans/clusters.pth.tar
	cp $(OWN)/predicted/contact_sheet.png $@

clean:
	rm -rf $(DEMO)
