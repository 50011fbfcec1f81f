"""What the outputs of operations are called that have several, which is how a function names them.

Source: tensorflow/core/ops/*.cc, as TensorFlow 2.21 registers them; what no model computes for its answers (gradients,
readers, accumulators, what is made for one kind of device only) is left out.
"""

from __future__ import annotations

from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

# Operation and outputs; `NAME:ATTRIBUTE` is a list whose length is the attribute's, a number or the list of its types.
_TABLE = """
ApproxTopK values indices
Batch batched_tensors:T batch_index id
BatchSelfAdjointEigV2 e v
BatchSvd s u v
BlockLSTM i cs f o ci co h
BlockLSTMV2 i cs f o ci co h
BroadcastGradientArgs r0 r1
CTCBeamSearchDecoder decoded_indices:top_paths decoded_values:top_paths decoded_shape:top_paths log_probability
CTCGreedyDecoder decoded_indices decoded_values decoded_shape log_probability
CTCLoss loss gradient
CTCLossV2 loss gradient
CombinedNonMaxSuppression nmsed_boxes nmsed_scores nmsed_classes valid_detections
CudnnRNN output output_h output_c reserve_space
CudnnRNNV2 output output_h output_c reserve_space host_reserved
CudnnRNNV3 output output_h output_c reserve_space host_reserved
CustomAggregator output min max histogram
DecodeProtoV2 sizes values:output_types
DecodeWav audio sample_rate
DenseCountSparseOutput output_indices output_values output_dense_shape
DenseToDenseSetOperation result_indices result_values result_shape
DenseToSparseSetOperation result_indices result_values result_shape
DeserializeManySparse sparse_indices sparse_values sparse_shape
DeserializeSparse sparse_indices sparse_values sparse_shape
Eig e v
FractionalAvgPool output row_pooling_sequence col_pooling_sequence
FractionalMaxPool output row_pooling_sequence col_pooling_sequence
FusedBatchNorm y batch_mean batch_variance reserve_space_1 reserve_space_2
FusedBatchNormGradV3 x_backprop scale_backprop offset_backprop reserve_space_4 reserve_space_5
FusedBatchNormV2 y batch_mean batch_variance reserve_space_1 reserve_space_2
FusedBatchNormV3 y batch_mean batch_variance reserve_space_1 reserve_space_2 reserve_space_3
GRUBlockCell r u c h
IsotonicRegression output segments
LSTMBlockCell i cs f o ci co h
ListDiff out idx
LogMatrixDeterminant sign log_abs_determinant
LookupTableExport keys values
LookupTableExportV2 keys values
Lu lu p
MaxPoolWithArgmax output argmax
Merge output value_index
NearestNeighbors nearest_center_indices nearest_center_distances
NonMaxSuppressionV4 selected_indices valid_outputs
NonMaxSuppressionV5 selected_indices selected_scores valid_outputs
ParseExample sparse_indices:Nsparse sparse_values:sparse_types sparse_shapes:Nsparse dense_values:Tdense
ParseExampleV2 sparse_indices:num_sparse sparse_values:sparse_types sparse_shapes:num_sparse dense_values:Tdense
    ragged_values:ragged_value_types ragged_row_splits:ragged_split_types
ParseSequenceExample context_sparse_indices:Ncontext_sparse context_sparse_values:context_sparse_types
    context_sparse_shapes:Ncontext_sparse context_dense_values:Tcontext_dense
    feature_list_sparse_indices:Nfeature_list_sparse feature_list_sparse_values:feature_list_sparse_types
    feature_list_sparse_shapes:Nfeature_list_sparse feature_list_dense_values:feature_list_dense_types
    feature_list_dense_lengths:Nfeature_list_dense
ParseSequenceExampleV2 context_sparse_indices:Ncontext_sparse context_sparse_values:context_sparse_types
    context_sparse_shapes:Ncontext_sparse context_dense_values:Tcontext_dense
    context_ragged_values:context_ragged_value_types context_ragged_row_splits:context_ragged_split_types
    feature_list_sparse_indices:Nfeature_list_sparse feature_list_sparse_values:feature_list_sparse_types
    feature_list_sparse_shapes:Nfeature_list_sparse feature_list_dense_values:feature_list_dense_types
    feature_list_dense_lengths:Nfeature_list_dense feature_list_ragged_values:feature_list_ragged_value_types
    feature_list_ragged_outer_splits:feature_list_ragged_split_types
    feature_list_ragged_inner_splits:feature_list_ragged_split_types
ParseSingleExample sparse_indices:num_sparse sparse_values:sparse_types sparse_shapes:num_sparse
    dense_values:Tdense
ParseSingleSequenceExample context_sparse_indices:Ncontext_sparse context_sparse_values:context_sparse_types
    context_sparse_shapes:Ncontext_sparse context_dense_values:Tcontext_dense
    feature_list_sparse_indices:Nfeature_list_sparse feature_list_sparse_values:feature_list_sparse_types
    feature_list_sparse_shapes:Nfeature_list_sparse feature_list_dense_values:feature_list_dense_types
Qr q r
QuantizeDownAndShrinkRange output output_min output_max
QuantizeV2 output output_min output_max
RaggedCountSparseOutput output_indices output_values output_dense_shape
RaggedCross output_values output_row_splits
RaggedFillEmptyRows output_value_rowids output_values empty_row_indicator reverse_index_map
RaggedGather output_nested_splits:OUTPUT_RAGGED_RANK output_dense_values
RaggedRange rt_nested_splits rt_dense_values
RaggedTensorFromVariant output_nested_splits:output_ragged_rank output_dense_values
RaggedTensorToSparse sparse_indices sparse_values sparse_dense_shape
RefMerge output value_index
RefSwitch output_false output_true
SelfAdjointEigV2 e v
SoftmaxCrossEntropyWithLogits loss backprop
SparseAdd sum_indices sum_values sum_shape
SparseConcat output_indices output_values output_shape
SparseCountSparseOutput output_indices output_values output_dense_shape
SparseCross output_indices output_values output_shape
SparseCrossHashed output_indices output_values output_shape
SparseCrossV2 output_indices output_values output_shape
SparseFillEmptyRows output_indices output_values empty_row_indicator reverse_index_map
SparseReduceMaxSparse output_indices output_values output_shape
SparseReduceSumSparse output_indices output_values output_shape
SparseReorder output_indices output_values
SparseReshape output_indices output_shape
SparseSlice output_indices output_values output_shape
SparseSoftmaxCrossEntropyWithLogits loss backprop
SparseSparseMaximum output_indices output_values
SparseSparseMinimum output_indices output_values
SparseSplit output_indices:num_split output_values:num_split output_shape:num_split
SparseToSparseSetOperation result_indices result_values result_shape
StatelessRandomGetKeyCounter key counter
StatelessRandomGetKeyCounterAlg key counter alg
StringNGrams ngrams ngrams_splits
StringSplit indices values shape
StringSplitV2 indices values shape
Svd s u v
Switch output_false output_true
TensorArrayConcat value lengths
TensorArrayConcatV2 value lengths
TensorArrayConcatV3 value lengths
TensorArrayV3 handle flow
TensorListConcat tensor lengths
TensorListConcatV2 tensor lengths
TensorListPopBack output_handle tensor
TopK values indices
TopKUnique topk topk_indices
TopKV2 values indices
TopKWithUnique topk topk_indices
UnicodeDecode row_splits char_values
UnicodeDecodeWithOffsets row_splits char_values char_to_byte_starts
Unique y idx
UniqueV2 y idx
UniqueWithCounts y idx count
UniqueWithCountsV2 y idx count
"""


def _read(text: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    name = ""
    for line in text.strip().splitlines():
        words = line.split()
        if not line.startswith(" "):
            name, *words = words
        found[name] = found.get(name, ()) + tuple(words)
    return found


OUTPUTS = _read(_TABLE)


def place_of(node: pb.NodeDef, output: str) -> int:
    """Return the place of the first tensor of a node's output among all its tensors; 0 for what is not known.

    An operation that is not in the table has one output, and its only output may be a list.
    """
    place = 0
    for entry in OUTPUTS.get(node.op, ()):
        name, _, attribute = entry.partition(":")
        if name == output:
            return place
        value = node.attr[attribute] if attribute in node.attr else pb.AttrValue()
        place += 1 if not attribute else value.i if value.WhichOneof("value") == "i" else len(value.list.type)
    return 0
