#include "fusedbun/launcher/cli/standard_streams.h"

#include <fcntl.h>
#include <unistd.h>

namespace fusedbun::launcher {

void open_standard_streams() {
  int descriptor = 0;  // open() takes the lowest number that is free
  while ((descriptor = ::open("/dev/null", O_RDWR)) >= 0 && descriptor <= STDERR_FILENO) {
  }
  if (descriptor >= 0) ::close(descriptor);
}

}  // namespace fusedbun::launcher
