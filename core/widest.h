#pragma once
// FUSEDBUN_WIDEST before a function compiles its loops once more for AVX2, and the program takes what the machine has. For loops
// whose operations are exact or correctly rounded one by one, so that both copies give the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FUSEDBUN_WIDEST __attribute__((target_clones("avx2", "default")))
#else
#define FUSEDBUN_WIDEST
#endif
