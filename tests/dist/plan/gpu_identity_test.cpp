// Which GPU a rank takes, and what a person reads where there is none.
#include "fusedbun/dist/plan/gpu_identity.h"

#include <gmock/gmock.h>

namespace fusedbun::plan {
namespace {

using testing::HasSubstr;

TEST(GpuIdentity, UuidsReadAsNvidiaSmiWritesThem) {
  EXPECT_EQ(to_text({0x6f, 0x1c, 0x2d, 0x3e, 0x4f, 0x50, 0x61, 0x72, 0x83, 0x94, 0xa5, 0xb6, 0xc7,
                     0xd8, 0xe9, 0xfa}),
            "GPU-6f1c2d3e-4f50-6172-8394-a5b6c7d8e9fa");
  EXPECT_EQ(to_text({}), "GPU-00000000-0000-0000-0000-000000000000");
}

TEST(GpuIdentity, RanksOfAHostTakeItsGpusInOrder) {
  EXPECT_EQ(choose_gpu(0, 8), 0);
  EXPECT_EQ(choose_gpu(7, 8), 7);
}

TEST(GpuIdentity, WhereARankSeesFewerItTakesOneOfThem) {
  EXPECT_EQ(choose_gpu(5, 1), 0) << "Slurm's --gpus-per-task=1";
  EXPECT_EQ(choose_gpu(2, 2), 0)
      << "Slurm's --gpus-per-task=2, or a host with more ranks than GPUs";
  EXPECT_EQ(choose_gpu(5, 2), 1);
  EXPECT_EQ(choose_gpu(0, 0), std::nullopt);
}

TEST(GpuIdentity, SaysWhyThereIsNoGpu) {
  const CudaSurvey usable{.runtime_version = 13000, .driver_version = 13010, .visible = 1};
  EXPECT_EQ(gpu_problem(usable), "");

  CudaSurvey survey = usable;
  survey.driver_version = 0;
  survey.error = "CUDA driver version is insufficient for CUDA runtime version";
  EXPECT_THAT(gpu_problem(survey), HasSubstr("no NVIDIA driver is installed here"));

  survey.driver_version = 12040;
  EXPECT_EQ(gpu_problem(survey),
            "the NVIDIA driver is too old: it supports CUDA 12.4 and LibTorch here is made for "
            "CUDA 13.0: update the driver, or install a LibTorch for an older CUDA");

  survey = usable;
  survey.visible = 0;
  survey.error = "no CUDA-capable device is detected";
  survey.visible_devices = "7";
  EXPECT_THAT(gpu_problem(survey), HasSubstr("CUDA finds no GPU (CUDA_VISIBLE_DEVICES=7): no "
                                             "CUDA-capable device is detected"));
  survey.error = "";
  EXPECT_THAT(gpu_problem(survey), HasSubstr("CUDA shows this process no GPU"));
}

TEST(GpuIdentity, ADriverThatIsOlderButWorksIsNoProblem) {
  // CUDA's minor versions are compatible, and there are compatibility packages.
  EXPECT_EQ(gpu_problem({.runtime_version = 13010, .driver_version = 13000, .visible = 1}), "");
}

TEST(GpuIdentity, VersionsAreWrittenAsTheirMakersDo) {
  EXPECT_EQ(cuda_version_text(13000), "13.0");
  EXPECT_EQ(cuda_version_text(12040), "12.4");
  EXPECT_EQ(nccl_version_text(23007), "2.30.7");
  EXPECT_EQ(nccl_version_text(22907), "2.29.7");
  EXPECT_EQ(nccl_version_text(2708), "2.7.8");
}

}  // namespace
}  // namespace fusedbun::plan
