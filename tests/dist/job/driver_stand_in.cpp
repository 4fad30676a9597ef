// libcuda.so.1 as an NVIDIA driver of CUDA 12.4 would have it, and of it only what the CUDA runtime asks before it finds that too old.
extern "C" {
int cuInit(unsigned) {
  return 0;
}
int cuDriverGetVersion(int* version) {
  *version = 12040;
  return 0;
}
}
