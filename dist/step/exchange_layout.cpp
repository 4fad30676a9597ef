#include "fusedbun/dist/step/exchange_layout.h"

namespace fusedbun {

ExchangeLayout lay_out_exchange(const plan::Bucket& bucket, int64_t element_bytes,
                                int64_t in_place_bytes) {
  ExchangeLayout layout;
  for (const std::vector<plan::Segment>& segments : bucket.segments) {
    std::vector<int64_t>& places = layout.places.emplace_back(segments.size());
    int64_t end = 0;
    const auto place = [&](bool packed) {
      for (size_t i = 0; i < segments.size(); ++i) {
        const int64_t elements = segments[i].range.elements();
        if ((elements * element_bytes < in_place_bytes) != packed) continue;
        places[i] = end;
        end += elements;
      }
    };
    place(/*packed=*/true);
    layout.packed.push_back(end);
    layout.packed_begins.push_back(layout.packed_total);
    layout.packed_total += end;
    place(/*packed=*/false);
  }
  return layout;
}

}  // namespace fusedbun
