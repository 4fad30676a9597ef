#include "fusedbun/dist/comm/communicator.h"

#include "fusedbun/core/error.h"

namespace fusedbun::comm {

size_t bytes_of(DataType type) {
  switch (type) {
    case DataType::u8:
      return 1;
    case DataType::i32:
    case DataType::f32:
      return 4;
    case DataType::i64:
    case DataType::f64:
      return 8;
  }
  FUSEDBUN_ASSERT(false, "a DataType that does not exist");
}

}  // namespace fusedbun::comm
