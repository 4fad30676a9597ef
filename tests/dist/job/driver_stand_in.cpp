// libcuda.so.1 without a function of the driver: what asks whether there is a driver finds one, what uses it finds no GPU.
extern "C" void fusedbun_stands_for_a_driver() {}
