/*
 * libebsynth: guided patch-based image synthesis and nearest-neighbour fields between images, on the CPU and on CUDA.
 *
 * Conventions
 *   - Images are uint8, row-major, channels interleaved, without padding: [batch, height, width, channels].
 *   - A nearest-neighbour field (NNF) is int32 [batch, height, width, 2]: for each target pixel the row, then the
 *     column of a source pixel. Entries of input fields are clamped to the source.
 *   - A patch is the square of patch_size x patch_size pixels around a pixel; outside the image, the nearest pixel is
 *     repeated, or (EBSYNTH_BORDER_ZERO) all channels are 0.
 *   - The caller allocates all memory, including outputs, and keeps it alive during the call. Outputs marked "or NULL"
 *     are skipped if NULL. Unless the status is EBSYNTH_OK, the contents of outputs are undefined.
 *   - The same arguments and seed give the same bytes on every back end, machine and number of threads.
 *   - No function prints, exits or throws. A context holds the settings, the last error and scratch memory, which later
 *     calls reuse. Contexts are independent. Use a context from one thread at a time.
 *   - CUDA's current device is the same after a call as before, unless it had no context yet: selecting it again would
 *     create one, which takes hundreds of megabytes of its memory.
 *   - Sides of images are 1..EBSYNTH_MAX_SIDE. A batch may be empty: the call checks its arguments and does nothing.
 *
 * The method is PatchMatch (Barnes et al. 2009) inside the synthesis loop of StyLit (Fiser et al. 2016) and Ebsynth
 * (Jamriska et al. 2019): it alternates search and vote, from coarse to fine.
 */
#ifndef EBSYNTH_H
#define EBSYNTH_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EBSYNTH_API __declspec(dllexport)
#else
#define EBSYNTH_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Major version in the upper 16 bits: it changes when callers must be recompiled. */
#define EBSYNTH_VERSION ((uint32_t)((1u << 16) | 2u))

#define EBSYNTH_MAX_SIDE 32767
#define EBSYNTH_MAX_STYLE_CHANNELS 8
#define EBSYNTH_MAX_GUIDE_CHANNELS 24
#define EBSYNTH_MIN_PATCH_SIZE 3
#define EBSYNTH_MAX_PATCH_SIZE 31
#define EBSYNTH_MAX_ROUNDS 64
#define EBSYNTH_MAX_THREADS 1024
#define EBSYNTH_MAX_WEIGHT 1e6f

typedef int32_t ebsynth_status;
#define EBSYNTH_OK 0
#define EBSYNTH_INVALID_ARGUMENT 1  /* ebsynth_last_error says which */
#define EBSYNTH_OUT_OF_MEMORY 2     /* of the host or of the device */
#define EBSYNTH_CANCELLED 3         /* by the progress callback */
#define EBSYNTH_NO_BACKEND 4        /* not built in, no device, or no driver */
#define EBSYNTH_DEVICE_ERROR 5      /* CUDA reported an error; ebsynth_last_error has its text */
#define EBSYNTH_INTERNAL_ERROR 6    /* a bug of this library */

typedef int32_t ebsynth_backend;
#define EBSYNTH_AUTO 0 /* CUDA where the device can run it, else the CPU */
#define EBSYNTH_CPU 1
#define EBSYNTH_CUDA 2

typedef int32_t ebsynth_memory;
#define EBSYNTH_HOST 0   /* all image, field and error pointers of a call are host memory */
#define EBSYNTH_DEVICE 1 /* all of them are memory of the context's CUDA device; weights and schedules stay on the host */

typedef int32_t ebsynth_vote;
#define EBSYNTH_VOTE_PLAIN 0    /* the mean of all patches that cover a pixel */
#define EBSYNTH_VOTE_WEIGHTED 1 /* each patch weighs 1 / (1 + its patch error / (patch_size^2 * channels)) */

typedef int32_t ebsynth_start;
#define EBSYNTH_START_IDENTITY 0 /* each pixel matches its own position, scaled if source and target differ in size */
#define EBSYNTH_START_RANDOM 1   /* drawn from the seed */
#define EBSYNTH_START_GIVEN 2    /* what `nnf` holds */

typedef int32_t ebsynth_border;
#define EBSYNTH_BORDER_REPEAT 0
#define EBSYNTH_BORDER_ZERO 1

/* Called on the caller's thread between rounds of work; fraction is in 0..1. A result other than 0 stops the call with EBSYNTH_CANCELLED. */
typedef int32_t (*ebsynth_progress)(void *user, float fraction);

typedef struct ebsynth_context ebsynth_context;

/* Settings of all calls through a context. Every struct starts with its size, sizeof(struct), so that a newer library can
 * tell which members its caller does not know. Zeroed members have their default. */
typedef struct ebsynth_settings {
  uint32_t struct_size;
  ebsynth_backend backend;   /* default EBSYNTH_AUTO */
  int32_t device;            /* ordinal of the CUDA device, default 0 */
  int32_t threads;           /* of the CPU back end, 0..EBSYNTH_MAX_THREADS (0 = all) */
  ebsynth_progress progress; /* or NULL */
  void *user;                /* passed to progress */
} ebsynth_settings;

/* How the library was built and what it can use on this machine. */
typedef struct ebsynth_info {
  uint32_t struct_size;
  uint32_t version;         /* EBSYNTH_VERSION of the library */
  int32_t cuda_built;       /* 1: the CUDA back end is built in */
  int32_t cuda_devices;     /* devices that the driver offers; ebsynth_create tells whether one is usable */
  int32_t cpu_threads;      /* number of threads that threads = 0 stands for */
  char cpu_kernels[32];     /* "avx2", "neon" or "portable": chosen for this processor */
  char compiler[96];        /* name and version */
  char cuda_toolkit[32];    /* "" or e.g. "13.0" */
  char cuda_architectures[128]; /* "" or e.g. "75 80 86 89 90" */
} ebsynth_info;

/*
 * Guided synthesis: paints each target in the style of its source, so that patches of style and guides agree.
 *
 * Patch error of target pixel t and source pixel s: the sum over the patch and over channels c of
 * weight_c * (target_c - source_c)^2, bytes 0..255; the target's style is what is being painted. A guide channel's weight
 * is multiplied by modulation / 255 at the target pixel, if there is a modulation. Internally weights are fixed-point
 * numbers (about 28 bits for their sum), so that errors are exact integers.
 *
 * A candidate costs its error + uniformity * usage / (patch_size^2 * w): usage = over the source patch, the sum of how many
 * patches of the current field cover each pixel; w = (target pixels / source pixels) * patch_size^2, its value if all source
 * pixels were used equally.
 */
typedef struct ebsynth_synthesis {
  uint32_t struct_size;
  ebsynth_memory memory;
  void *stream; /* cudaStream_t on which the call runs; NULL = the default stream. The call returns when its work is done */
  int32_t batch;
  int32_t source_height, source_width;
  int32_t target_height, target_width;
  int32_t style_channels; /* 1..8 */
  int32_t guide_channels; /* 0..24 */
  const uint8_t *source_style;      /* [batch, source_height, source_width, style_channels] */
  const uint8_t *source_guides;     /* [batch, source_height, source_width, guide_channels] */
  const uint8_t *target_guides;     /* [batch, target_height, target_width, guide_channels] */
  const uint8_t *target_modulation; /* like target_guides, or NULL */
  const float *style_weights;       /* [style_channels], host, 0..EBSYNTH_MAX_WEIGHT; not all weights 0 */
  const float *guide_weights;       /* [guide_channels], host */
  float uniformity;                 /* 0..1e6; Ebsynth's default 3500 */
  int32_t patch_size;               /* odd, 3..31; Ebsynth's default 5 */
  int32_t pyramid_levels;           /* 1..16, at most as many as leave sides of 2 * patch_size + 1; 0 = that many */
  int32_t search_vote_iterations;   /* 0..1000; Ebsynth's default 6 */
  int32_t patch_match_iterations;   /* 0..1000 sweeps per search; Ebsynth's default 4 */
  int32_t stop_threshold;           /* 0..255: stop searching pixels whose patch changed by less in the last vote
                                       (0 = never stop); Ebsynth's default 5 */
  ebsynth_vote vote;
  int32_t extra_pass_3x3;           /* 1: one more search with patches of 3x3, without uniformity, at the finest level */
  uint64_t seed;
  uint8_t *image; /* out: [batch, target_height, target_width, style_channels] */
  int32_t *nnf;   /* out: [batch, target_height, target_width, 2], or NULL */
  float *error;   /* out: [batch, target_height, target_width], patch error of nnf against image, or NULL */
} ebsynth_synthesis;

/*
 * Nearest-neighbour fields between pairs of images, such as frames of a video. The patch error is that of guided synthesis
 * with guide_weight / guide_channels and style_weight / style_channels as weights, without uniformity.
 * With a source style but no target style, the target's style is painted by voting after each search.
 */
typedef struct ebsynth_matching {
  uint32_t struct_size;
  ebsynth_memory memory;
  void *stream;
  int32_t batch;
  int32_t source_height, source_width;
  int32_t target_height, target_width;
  int32_t style_channels; /* 0..8 */
  int32_t guide_channels; /* 0..24 */
  const uint8_t *source_style; /* [batch, source_height, source_width, style_channels]; NULL if style_channels is 0 */
  const uint8_t *target_style; /* [batch, target_height, target_width, style_channels], or NULL: painted */
  const uint8_t *source_guide; /* [batch, source_height, source_width, guide_channels] */
  const uint8_t *target_guide; /* [batch, target_height, target_width, guide_channels] */
  float style_weight;          /* 0..EBSYNTH_MAX_WEIGHT */
  float guide_weight;
  const int32_t *patch_sizes;  /* [rounds], host: odd, 3..31, one search each, in this order, at every pyramid level */
  int32_t rounds;              /* 1..EBSYNTH_MAX_ROUNDS */
  int32_t pyramid_levels;      /* 1..16, at most as many as leave sides of 2 * largest patch + 1; 0 = that many */
  int32_t patch_match_iterations; /* 0..1000 sweeps per search */
  int32_t search_radius;       /* of the random search, in pixels of each level; 0 = the whole image */
  ebsynth_start start;
  uint64_t seed;
  int32_t *nnf; /* [batch, target_height, target_width, 2]; out, and in with EBSYNTH_START_GIVEN */
  float *error; /* out: [batch, target_height, target_width] of the last patch size, or NULL */
  ebsynth_border border; /* since version 1.1 */
} ebsynth_matching;

/* Paints images through fields: each target pixel is the mean of the patches that cover it. */
typedef struct ebsynth_remapping {
  uint32_t struct_size;
  ebsynth_memory memory;
  void *stream;
  int32_t batch;
  int32_t source_height, source_width;
  int32_t target_height, target_width;
  int32_t channels;   /* 1..8 */
  int32_t patch_size; /* odd, 1..31; 1 = the pixels themselves */
  const uint8_t *source; /* [batch, source_height, source_width, channels] */
  const int32_t *nnf;    /* [batch, target_height, target_width, 2] */
  uint8_t *image;        /* out: [batch, target_height, target_width, channels], rounded to the nearest, ties up */
  ebsynth_border border;  /* since version 1.1 */
} ebsynth_remapping;

/* The patch error of fields, as in ebsynth_matching. Either both styles are given, or style_channels is 0. */
typedef struct ebsynth_errors {
  uint32_t struct_size;
  ebsynth_memory memory;
  void *stream;
  int32_t batch;
  int32_t source_height, source_width;
  int32_t target_height, target_width;
  int32_t style_channels; /* 0..8 */
  int32_t guide_channels; /* 0..24 */
  const uint8_t *source_style;
  const uint8_t *target_style;
  const uint8_t *source_guide;
  const uint8_t *target_guide;
  float style_weight;
  float guide_weight;
  int32_t patch_size; /* odd, 3..31 */
  const int32_t *nnf; /* [batch, target_height, target_width, 2] */
  float *error;       /* out: [batch, target_height, target_width] */
  ebsynth_border border; /* since version 1.1 */
} ebsynth_errors;

EBSYNTH_API ebsynth_status ebsynth_get_info(ebsynth_info *info);

/* *context is NULL when the status is not EBSYNTH_OK. EBSYNTH_NO_BACKEND if the requested back end cannot run here. */
EBSYNTH_API ebsynth_status ebsynth_create(const ebsynth_settings *settings, ebsynth_context **context);
EBSYNTH_API void ebsynth_destroy(ebsynth_context *context); /* NULL is allowed */

/* The error of the last call through this context, in English; "" after a success. Valid until the next call. Since version
 * 1.2, NULL asks for that of the calling thread's last ebsynth_create. */
EBSYNTH_API const char *ebsynth_last_error(const ebsynth_context *context);

EBSYNTH_API ebsynth_status ebsynth_synthesize(ebsynth_context *context, const ebsynth_synthesis *call);
EBSYNTH_API ebsynth_status ebsynth_match(ebsynth_context *context, const ebsynth_matching *call);
EBSYNTH_API ebsynth_status ebsynth_remap(ebsynth_context *context, const ebsynth_remapping *call);
EBSYNTH_API ebsynth_status ebsynth_patch_error(ebsynth_context *context, const ebsynth_errors *call);

#ifdef __cplusplus
}
#endif
#endif
