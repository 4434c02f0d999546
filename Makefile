# make demo: the whole method on images drawn by code.   make test: lint, type check and all tests.
# Both make .venv and install into it on the first call.   make PYTHON=python3.12 demo chooses the Python.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python
DEMO   := results/demo
# the demo's models: "before" is the same encoder with its initial weights
ENV    := --config_env configs/demo/env.yml --config_exp configs/demo
BEFORE := pretraining=pretrain_before/checkpoint.pth.tar

.PHONY: demo test install clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-dev.txt
	@echo '== Installing into $(VENV) (once; PyTorch is large, this takes a few minutes)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@echo '== Building the CRF (pydensecrf2)'
	$(RUN) -m pip install --quiet --disable-pip-version-check 'pydensecrf2>=1.1' \
	  || echo '== pydensecrf2 could not be built (is there a C++ compiler?): everything but the CRF works'
	touch $@

test: install
	@echo '== Lint'
	$(BIN)/ruff check .
	@echo '== Type check'
	$(BIN)/mypy
	@echo '== Tests'
	$(RUN) -m pytest

demo: install
	@echo '== Drawing the data set'
	$(RUN) data/synthetic.py --output $(DEMO)/data/Shapes
	@echo '== Pretraining, without labels'
	$(RUN) pretrain/main.py $(ENV)/pretrain.yml
	@echo '== The same encoder before pretraining'
	$(RUN) pretrain/main.py $(ENV)/pretrain.yml --set epochs=0 output_dir=pretrain_before
	@echo '== Linear classifier, before and after pretraining'
	$(RUN) segmentation/linear_finetune.py $(ENV)/linear_finetune.yml --set $(BEFORE) output_dir=linear_before
	$(RUN) segmentation/linear_finetune.py $(ENV)/linear_finetune.yml
	@echo '== Evaluation of the linear classifiers with the CRF'
	for run in linear_before linear_finetune; do \
	  crf=; $(RUN) -c 'import pydensecrf' 2>/dev/null && crf=--crf-postprocess; \
	  $(RUN) segmentation/eval.py $(ENV)/linear_finetune.yml --state-dict $(DEMO)/$$run/best_model.pth.tar $$crf \
	    --set output_dir=$${run}_eval || exit; done
	@echo '== K-means and retrieval; before pretraining with given masks, on untrained embeddings and backbone features'
	for task in kmeans retrieval; do \
	  for features in embedding backbone; do \
	    $(RUN) segmentation/$$task.py $(ENV)/$$task.yml --set $(BEFORE) features=$$features \
	      saliency=supervised_model output_dir=$${task}_before_$$features || exit; done; \
	  $(RUN) segmentation/$$task.py $(ENV)/$$task.yml || exit; done
	@echo '== Before and after pretraining'
	$(RUN) segmentation/table.py --output $(DEMO) --pictures $(DEMO)/kmeans/visualizations \
	  --pretraining $(DEMO)/pretrain \
	  --column before $(DEMO)/linear_before_eval $(DEMO)/kmeans_before_embedding $(DEMO)/kmeans_before_backbone \
	    $(DEMO)/retrieval_before_embedding $(DEMO)/retrieval_before_backbone \
	  --column after $(DEMO)/linear_finetune_eval $(DEMO)/kmeans $(DEMO)/retrieval
	@echo '== The whole story, with pictures: open $(DEMO)/report.html in a browser'

# segmentation/predict.py on the drawn images, taken as a plain folder without labels
docs/own_images.png: OWN := $(DEMO)/own_images
docs/own_images.png: $(DEMO)/pretrain/checkpoint.pth.tar
	mkdir -p docs $(OWN)
	ln -sfn ../data/Shapes/images $(OWN)/images
	$(RUN) segmentation/kmeans.py --config_env configs/own_images/env.yml --config_exp configs/own_images/kmeans.yml \
	  --num_clusters 5-10 --set db_root=$(OWN) root_dir=$(OWN) pretraining=$< backbone=resnet18 model_kwargs.ndim=4 \
	  val_size=80
	$(RUN) segmentation/predict.py --images $(OWN)/images --output $(OWN)/predicted --model $(OWN)/kmeans/clusters.pth.tar
	cp $(OWN)/predicted/contact_sheet.png $@

clean:
	rm -rf $(DEMO)
