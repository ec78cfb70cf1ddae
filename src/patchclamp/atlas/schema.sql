-- The tables of an atlas. The comment above a table and behind a column is its documentation: it is stored in the
-- file (COMMENT ON) and shown by Atlas.tables(). Change a table: raise SCHEMA_VERSION in schema.py.

-- One row that says what this file is and which versions wrote it.
CREATE TABLE about (
  format VARCHAR,              -- always patchclamp.atlas
  schema_version INTEGER,      -- version of these tables; a reader refuses a newer one
  patchclamp VARCHAR,          -- version of patchclamp that wrote the file
  duckdb VARCHAR,              -- version of DuckDB that wrote the file
  created VARCHAR              -- ISO 8601, UTC
);

-- The model that every other row is about; one row.
CREATE TABLE models (
  model_id INTEGER,            -- 1
  name VARCHAR,                -- as given to patchclamp.load
  type VARCHAR,                -- model type of transformers, such as llama
  fingerprint VARCHAR,         -- hex SHA-256 of architecture and weights
  source VARCHAR,              -- hub id or folder; NULL for a live model
  dtype VARCHAR,               -- of the weights when the first result was made
  identity VARCHAR             -- JSON of LanguageModel.identity, widths and experts of every site included
);

-- The layers of every site whose units are in this atlas.
CREATE TABLE layers (
  site VARCHAR,                -- kind of place: mlp, gate, up, pre, attn, q, k, v, resid, attn_out, mlp_out, embed, head
  layer INTEGER,               -- counted from 0
  first_unit BIGINT,           -- unit_id of the layer's first unit
  width BIGINT,                -- units in the layer, all experts together
  experts INTEGER              -- experts in the layer; 0 where it is dense
);

-- One row per unit. unit_id is the flat position within the site plus the start of the site, so it never depends on
-- what else is in the atlas, and for the first site (mlp where there is one) it is the flat position itself.
CREATE TABLE units (
  unit_id BIGINT,              -- joins all tables; ascending, so that look-ups read one block
  name VARCHAR,                -- such as mlp.12.345, with experts mlp.12.e3.345
  site VARCHAR,                -- kind of place
  layer INTEGER,               -- counted from 0
  expert INTEGER,              -- NULL in dense layers
  index BIGINT                 -- within the expert where there is one, else within the layer
);

-- One row per recording, finding, file of sets, table of effects or reading that went into the atlas.
CREATE TABLE runs (
  run_id INTEGER,              -- counted from 1 in order of insertion
  kind VARCHAR,                -- recording, finding, sets, effects, tokens or descriptions
  method VARCHAR,              -- the finder or reading; NULL where there is none
  call VARCHAR,                -- public name of the function that made it, such as find.language
  fingerprint VARCHAR,         -- of the content; the same content is refused twice
  source VARCHAR,              -- where it was read from; NULL for a live object
  arguments VARCHAR,           -- JSON of the arguments
  inputs VARCHAR,              -- JSON of what went in: fingerprints of model, text, recording
  seed BIGINT,                 -- NULL where nothing is random
  versions VARCHAR,            -- JSON: package -> version
  created VARCHAR              -- ISO 8601, UTC; NULL if unknown
);

-- The labels (of texts, of found sets) of each run.
CREATE TABLE labels (
  label_id INTEGER,            -- counted from 1
  run_id INTEGER,              -- the run that uses the label
  label VARCHAR,               -- such as fr
  documents BIGINT,            -- documents read under it; NULL where no text was read
  tokens BIGINT                -- tokens that counted; NULL where no text was read
);

-- What a recording keeps of a unit over the text of one label. Further statistics add columns: one wide row per unit and
-- label finds the top units of a statistic some ten times faster than a row per value, and is smaller.
CREATE TABLE statistics (
  unit_id BIGINT,              -- see units
  label_id INTEGER,            -- see labels
  n BIGINT,                    -- tokens
  fired BIGINT,                -- tokens whose value exceeds the threshold of the recording (see runs.arguments)
  rate DOUBLE,                 -- fired / n
  mean DOUBLE,                 -- of the values
  sd DOUBLE,                   -- standard deviation of the values, divisor n - 1
  min DOUBLE,                  -- smallest value
  max DOUBLE,                  -- largest value
  q01 DOUBLE,                  -- quantiles of the values, from the recording's histogram
  q05 DOUBLE,                  -- quantile 0.05
  q25 DOUBLE,                  -- quantile 0.25
  q50 DOUBLE,                  -- median
  q75 DOUBLE,                  -- quantile 0.75
  q95 DOUBLE,                  -- quantile 0.95
  q99 DOUBLE                   -- quantile 0.99
);

-- The score that a finder gives a unit for a label.
CREATE TABLE scores (
  unit_id BIGINT,              -- see units
  label_id INTEGER,            -- see labels; its run says which method
  score DOUBLE,                -- larger speaks more for the label; NULL where the method gives none
  p DOUBLE,                    -- p-value against the method's null; NULL without one
  chosen BOOLEAN,              -- whether the method's own set of the label holds the unit
  member BOOLEAN               -- whether the unit serves the label, chosen or not; NULL where the method does not say
);

-- What a finding says of a unit whatever the label: its class and the method's own score of it.
CREATE TABLE classes (
  unit_id BIGINT,              -- see units
  run_id INTEGER,              -- see runs
  class VARCHAR,               -- such as specific, related, general, unassigned, dead; NULL without classes
  score DOUBLE                 -- such as the entropy of the LAPE method; NULL without one
);

-- Named unit sets.
CREATE TABLE sets (
  set_id INTEGER,              -- counted from 1
  run_id INTEGER,              -- the run it came with
  label_id INTEGER,            -- the label of that run it is named after; NULL where there is none
  name VARCHAR,                -- unique within its run
  n_units BIGINT               -- how many units it holds
);

-- The units of each set.
CREATE TABLE set_units (
  unit_id BIGINT,              -- see units
  set_id INTEGER,              -- see sets
  score DOUBLE                 -- the set's own score of the unit; NULL without one
);

-- The moments at which a unit was most active under a label.
CREATE TABLE exemplars (
  unit_id BIGINT,              -- see units
  label_id INTEGER,            -- see labels
  rank INTEGER,                -- 0 is the highest value
  value DOUBLE,                -- activation
  document BIGINT,             -- number of the document within its label, counted from 0
  position BIGINT,             -- number of the token within its document, counted from 0
  text VARCHAR,                -- the text around the token; NULL if the corpus was not given
  token_start INTEGER,         -- where the token lies in text, in characters; NULL if that is unknown
  token_end INTEGER            -- first character after the token
);

-- What clamping a set does to a text: one row per set and text.
CREATE TABLE effects (
  effect_id INTEGER,           -- counted from 1
  run_id INTEGER,              -- see runs
  set_id INTEGER,              -- see sets; NULL if the set is not in this atlas
  set_name VARCHAR,            -- "set" in the effects file
  text_label VARCHAR,          -- "text" in the effects file
  metric VARCHAR,              -- such as perplexity
  plain DOUBLE,                -- the metric of the untouched model
  clamped DOUBLE,              -- the metric under the clamp
  effect DOUBLE,               -- clamped - plain
  low DOUBLE,                  -- 95 % interval over documents, lower end
  high DOUBLE,                 -- its upper end
  control_mean DOUBLE,         -- mean effect of the matched random sets
  control_sd DOUBLE,           -- their standard deviation
  p DOUBLE,                    -- permutation p-value against the controls
  p_holm DOUBLE,               -- the same after Holm's correction over the table
  p_controls DOUBLE,           -- rank of the effect among the controls
  n_documents BIGINT,          -- documents measured
  n_tokens BIGINT,             -- tokens measured
  n_units BIGINT               -- units clamped
);

-- The tokens that a unit promotes or suppresses.
CREATE TABLE tokens (
  unit_id BIGINT,              -- see units
  run_id INTEGER,              -- see runs
  sign TINYINT,                -- 1 promoted, -1 suppressed
  rank INTEGER,                -- 0 is the strongest of its sign
  token_id INTEGER,            -- see vocabulary
  value FLOAT                  -- change of the token's logit per unit of activation
);

-- What a unit does, in words.
CREATE TABLE descriptions (
  unit_id BIGINT,              -- see units
  run_id INTEGER,              -- see runs; its method is the describer
  description VARCHAR,         -- the text that was chosen
  score DOUBLE,                -- log_probability minus lambda times log_prior, nats
  log_probability DOUBLE,      -- of the text given the unit's exemplars
  log_prior DOUBLE,            -- of the text, whatever the unit
  margin DOUBLE,               -- how much better than saying nothing it tells what fires; NULL where the describer can't say
  explains BOOLEAN             -- whether the margin is above 0
);

-- The strings of the token ids that tokens uses.
CREATE TABLE vocabulary (
  token_id INTEGER,            -- in the model's tokenizer
  token VARCHAR                -- decoded
);

-- statistics with the names of unit, run and label.
CREATE VIEW recorded AS
SELECT units.name AS unit, units.site, units.layer, labels.run_id, labels.label, statistics.*
FROM statistics JOIN units USING (unit_id) JOIN labels USING (label_id);

-- scores with the names of unit, method and label, and the unit's class in the same run.
CREATE VIEW found AS
SELECT units.name AS unit, units.site, units.layer, labels.run_id, runs.method, labels.label,
       scores.score, scores.p, scores.chosen, scores.member, classes.class, classes.score AS unit_score,
       scores.unit_id, scores.label_id
FROM scores JOIN units USING (unit_id) JOIN labels USING (label_id) JOIN runs USING (run_id)
LEFT JOIN classes ON classes.unit_id = scores.unit_id AND classes.run_id = labels.run_id;
