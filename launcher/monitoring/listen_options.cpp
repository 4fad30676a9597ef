#include <arpa/inet.h>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/monitoring/metrics_endpoint.h"

namespace fusedbun::monitoring {

std::string ip_of(const ListenOptions& listen) {
  const std::string host = listen.address == "localhost" ? "127.0.0.1" : listen.address;
  const bool has_brackets = host.size() > 2 && host.front() == '[' && host.back() == ']';
  const std::string ip = has_brackets ? host.substr(1, host.size() - 2) : host;
  in6_addr parsed{};
  FUSEDBUN_REQUIRE(::inet_pton(AF_INET, ip.c_str(), &parsed) == 1 ||
                       ::inet_pton(AF_INET6, ip.c_str(), &parsed) == 1,
                   ConfigError,
                   "--metrics-address = '" + listen.address +
                       "' is no IP address: take 127.0.0.1 (this host alone), 0.0.0.0 or :: (all "
                       "interfaces, by IPv4 or by IPv6), or one of this host's");
  return ip;
}

std::string text_of(const ListenOptions& listen) {
  const std::string ip = ip_of(listen);
  return (is_v6(ip) ? "[" + ip + "]" : ip) + ":" + std::to_string(listen.port);
}

}  // namespace fusedbun::monitoring
