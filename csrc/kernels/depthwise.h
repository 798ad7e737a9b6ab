// Depthwise convolution of NHWC maps, 7 x 7, stride 1, padding 3 (ConvNeXt, arXiv 2201.03545; timm
// ConvNeXtBlock.conv_dw), on a GPU. cuDNN compiles a kernel for every new number of pictures, 0.7 s
// for each map size with its gradients, and is several times slower than fp32 arithmetic allows.
// Sums are in fp32 and in a fixed order: the same bits from run to run and on every GPU, and of
// maps (not of d_weight) also beside other pictures.
#pragma once

#include <cstdint>

#include "kernels/element.h"

struct CUstream_st;

namespace mgm::kernels {

inline constexpr int kDepthwiseSide = 7;
inline constexpr int kDepthwiseTaps = kDepthwiseSide * kDepthwiseSide;
inline constexpr int kDepthwiseMultiple = 8;  // of which channels must be a multiple

struct MapShape {
  int64_t images = 0, height = 0, width = 0, channels = 0;
};

// T is float or Bf16; maps are contiguous [N, H, W, C] and aligned to two elements, weight
// [C, 1, 7, 7], bias [C] or null. With `flipped` taps and no bias it is the gradient of x.
template <class T>
struct Depthwise {
  MapShape shape;
  const T *x = nullptr, *weight = nullptr, *bias = nullptr;
  T* y = nullptr;
  bool flipped = false;
};

// d_weight [C, 1, 7, 7] of d_y and x. `partial` holds depthwise_partials(shape) floats.
template <class T>
struct DepthwiseWeightGradient {
  MapShape shape;
  const T *x = nullptr, *d_y = nullptr;
  float* partial = nullptr;
  T* d_weight = nullptr;
};

int64_t depthwise_partials(const MapShape& shape);

// Both asynchronous on `stream`.
template <class T>
void depthwise_cuda(const Depthwise<T>& problem, CUstream_st* stream);
template <class T>
void depthwise_weight_gradient_cuda(const DepthwiseWeightGradient<T>& problem, CUstream_st* stream);

}  // namespace mgm::kernels
