#include "fusedbun/tests/dist/checkpoint/disk_call_order.h"

#include <map>
#include <utility>

namespace fusedbun::checkpoint {
namespace {

using support::DiskCall;
using support::DiskCallRecord;

std::string folder_of(const std::string& path) {
  return path.substr(0, path.rfind('/'));
}

bool is_under(const std::string& path, const std::string& folder) {
  return path.starts_with(folder + "/");
}

class Judge {
 public:
  Judge(std::string root, std::string step_name)
      : root_(std::move(root)),
        under_way_(root_ + "/" + step_name + ".tmp"),
        published_(root_ + "/" + step_name) {}

  void see(const DiskCallRecord& record) {
    switch (record.call) {
      case DiskCall::open:
        if (record.creates) see_new_file(record.path);
        return;
      case DiskCall::mkdir:
        things_[record.path] = {.is_folder = true};
        return;
      case DiskCall::write:
        things_[record.path].is_durable = false;
        return;
      case DiskCall::fsync:
        see_fsync(record.path);
        return;
      case DiskCall::rename:
        see_rename(record);
        return;
      default:
        return;
    }
  }

  std::vector<std::string> end() {
    for (const auto& [path, thing] : things_) require_durable(path, thing, "at the end");
    if (last_rename_ != root_ + "/latest") complain("the last name given is " + last_rename_);
    return std::move(complaints_);
  }

 private:
  struct Thing {
    bool is_folder = false;
    bool is_durable = true;        ///< what was written to a file
    bool is_name_durable = false;  ///< in the folder that holds it
  };

  void complain(const std::string& what) { complaints_.push_back(what); }
  void require_durable(const std::string& path, const Thing& thing, const std::string& when) {
    if (!thing.is_durable) complain("the bytes of " + path + " are not durable " + when);
    if (!thing.is_name_durable) complain("the name of " + path + " is not durable " + when);
  }

  void see_new_file(const std::string& path) {
    things_[path] = {};
    if (path.starts_with(under_way_ + "/manifest.json")) {
      for (const auto& [other, thing] : things_) {
        if (other != path && is_under(folder_of(other), under_way_))
          require_durable(other, thing, "when the manifest is begun");
      }
    }
    if (path.starts_with(root_ + "/latest")) {
      if (!things_.contains(published_))
        complain("latest is begun before the checkpoint has its name");
      for (const auto& [other, thing] : things_) {
        if (other == published_ || is_under(other, published_))
          require_durable(other, thing, "when latest is begun");
      }
    }
  }

  void see_fsync(const std::string& path) {
    const auto synced = things_.find(path);
    if (synced != things_.end() && !synced->second.is_folder) {
      synced->second.is_durable = true;
      return;
    }
    for (auto& [other, thing] : things_) {
      if (folder_of(other) != path) continue;
      if (!thing.is_durable) complain(path + " is synced before what " + other + " holds");
      thing.is_name_durable = true;
    }
  }

  void see_rename(const DiskCallRecord& record) {
    last_rename_ = record.to;
    for (const auto& [path, thing] : things_) {
      if (path == record.path && !thing.is_durable)
        complain(path + " is renamed before it is durable");
      if (is_under(path, record.path)) require_durable(path, thing, "when its folder is renamed");
    }
    std::map<std::string, Thing> after;
    for (const auto& [path, thing] : things_) {
      std::string name = path;
      if (path == record.path || is_under(path, record.path)) {
        name = record.to + path.substr(record.path.size());
      } else if (record.exchanges && (path == record.to || is_under(path, record.to))) {
        name = record.path + path.substr(record.to.size());
      } else if (path == record.to || is_under(path, record.to)) {
        continue;  // replaced
      }
      after[name] = thing;
    }
    after[record.to].is_name_durable = false;
    things_ = std::move(after);
  }

  std::string root_, under_way_, published_;
  std::map<std::string, Thing> things_;
  std::string last_rename_;
  std::vector<std::string> complaints_;
};

}  // namespace

std::vector<std::string> order_violations(std::span<const DiskCallRecord> records,
                                          const std::string& root, const std::string& step_name) {
  Judge judge(root, step_name);
  for (const DiskCallRecord& record : records) judge.see(record);
  return judge.end();
}

}  // namespace fusedbun::checkpoint
