#include "fields.h"

#include "../include/contract.h"

namespace edge_awq {

std::unique_ptr<Op> create_op(const std::string& name, const std::vector<GivenAttribute>& given, std::string& reason) {
  const OpType* type = find_op_type(name);
  if (!type) {
    reason = "no such op";
    return nullptr;
  }
  std::vector<GivenAttribute> own;
  for (const GivenAttribute& attribute : given) {
    if (attribute.name != kContractField) {
      own.push_back(attribute);
    } else if (attribute.value != kContractVersion) {
      reason = "the engine was built for contract version " + std::to_string(static_cast<int>(attribute.value)) +
               ", this library has " + std::to_string(kContractVersion) + ": build the engine again";
      return nullptr;
    }
  }
  return make_op(*type, own, reason);
}

}  // namespace edge_awq
