#include "kernels.inl"

namespace ebsynth {
const Kernels kAvx2Kernels = {"avx2", any_errors, any_sweep, any_sum_row, box_row, box_columns, vote_row};
}
