#include "search/postings.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/crc32c.h"
#include "base/str_cat.h"

namespace mc {
namespace {

static_assert(std::endian::native == std::endian::little, "stores are little-endian");

// offset size field
//      0    8 magic           "MCPOSTS\n"
//      8    4 version         kPostingsVersion
//     12    4 analyzer        kAnalyzerVersion
//     16    8 total_bytes     of the whole byte string
//     24    8 total_length    words of all documents
//     32    4 document_count
//     36    4 run_count
//     40    8 term_count
//     48    8 posting_bytes
//     56    4 body_crc        crc32c of bytes 64..total_bytes
//     60    4 header_crc      crc32c of bytes 0..60
struct Header {
  std::array<char, 8> magic;
  uint32_t version, analyzer;
  uint64_t total_bytes, total_length;
  uint32_t document_count, run_count;
  uint64_t term_count, posting_bytes;
  uint32_t body_crc, header_crc;
};
static_assert(sizeof(Header) == 64 && offsetof(Header, body_crc) == 56);

struct EncodedRun {
  uint32_t partition, document_count;
  uint64_t first_block;
};
static_assert(sizeof(EncodedRun) == 16);

constexpr std::array<char, 8> kMagic = {'M', 'C', 'P', 'O', 'S', 'T', 'S', '\n'};

template <class T>
T load(std::span<const std::byte> bytes, uint64_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

template <class T>
void store(std::string& out, const std::vector<T>& values) {
  out.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  out.append((0 - out.size()) & 7, '\0');
}

uint64_t padded(uint64_t byte_count) {
  return (byte_count + 7) & ~uint64_t{7};
}

Status corrupt(uint64_t offset, const std::string& what) {
  return Status::corruption(str_cat("postings:", offset, ": ", what));
}

uint32_t header_crc(const Header& header) {
  return crc32c(std::as_bytes(std::span(&header, 1)).first(offsetof(Header, header_crc)));
}

Result<Header> parse_header(std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof(Header)) {
    return corrupt(0, str_cat("expected at least 64 bytes, got ", bytes.size()));
  }
  const Header header = load<Header>(bytes, 0);
  if (header.magic != kMagic) return corrupt(0, "expected the magic of postings");
  if (header.header_crc != header_crc(header)) {
    return corrupt(
        60, str_cat("expected header checksum ", header_crc(header), ", got ", header.header_crc));
  }
  if (header.version != kPostingsVersion || header.analyzer != kAnalyzerVersion) {
    return Status::unsupported(str_cat("postings:8: expected version ", kPostingsVersion, ".",
                                       kAnalyzerVersion, ", got ", header.version, ".",
                                       header.analyzer));
  }
  if (header.total_bytes != bytes.size()) {
    return corrupt(16, str_cat("expected ", header.total_bytes, " bytes, got ", bytes.size()));
  }
  return header;
}

// What the counts of a header add up to, or 0 when they do not fit into total_bytes.
uint64_t bytes_of(const Header& header) {
  const uint64_t most = header.total_bytes;
  if (header.term_count > most / 20 || header.posting_bytes > most) return 0;
  return sizeof(Header) + sizeof(EncodedRun) * uint64_t{header.run_count} +
         padded(4 * uint64_t{header.document_count}) + 8 * header.term_count +
         8 * (header.term_count + 1) + padded(4 * header.term_count) + header.posting_bytes;
}

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

}  // namespace

std::vector<Posting> PostingList::decode() const {
  std::vector<Posting> postings;
  for_each([&](uint32_t document, uint32_t count) { postings.push_back({document, count}); });
  return postings;
}

Result<PostingsView> PostingsView::parse(std::span<const std::byte> bytes) {
  MC_ASSIGN_OR_RETURN(const Header header, parse_header(bytes));
  if (bytes_of(header) != header.total_bytes) return corrupt(32, "expected counts that add up");
  const uint32_t body_crc = crc32c(bytes.subspan(sizeof(Header)));
  if (body_crc != header.body_crc) {
    return corrupt(56, str_cat("expected body checksum ", body_crc, ", got ", header.body_crc));
  }
  PostingsView view;
  view.document_count_ = header.document_count;
  view.total_length_ = header.total_length;
  view.term_count_ = header.term_count;
  std::span<const std::byte> rest = bytes.subspan(sizeof(Header));
  const auto take = [&rest](uint64_t byte_count) {
    const auto part = rest.first(byte_count);
    rest = rest.subspan(byte_count);
    return part;
  };
  const auto runs = take(sizeof(EncodedRun) * uint64_t{header.run_count});
  view.lengths_ = take(padded(4 * uint64_t{header.document_count}));
  view.hashes_ = take(8 * header.term_count);
  view.offsets_ = take(8 * (header.term_count + 1));
  view.posting_counts_ = take(padded(4 * header.term_count));
  view.postings_ = take(header.posting_bytes);
  MC_RETURN_IF_ERROR(view.parse_runs(runs, header.run_count));
  MC_RETURN_IF_ERROR(view.check_documents());
  MC_RETURN_IF_ERROR(view.check_terms());
  return view;
}

Status PostingsView::parse_runs(std::span<const std::byte> bytes, uint32_t run_count) {
  uint64_t documents = 0;
  std::optional<BlockId> end;  // of the previous run
  runs_.reserve(run_count);
  for (uint32_t i = 0; i < run_count; ++i) {
    const EncodedRun run = load<EncodedRun>(bytes, i);
    const BlockId first{run.partition, run.first_block};
    const uint64_t end_block = run.first_block + run.document_count;
    if (run.document_count == 0 || end_block < run.first_block || (end && first < *end)) {
      return corrupt(sizeof(Header) + 16 * uint64_t{i}, "expected runs in increasing order");
    }
    runs_.push_back(
        {run.partition, static_cast<uint32_t>(documents), run.document_count, run.first_block});
    documents += run.document_count;
    end = BlockId{run.partition, end_block};
    if (documents > document_count_) break;
  }
  if (documents != document_count_) {
    return corrupt(32,
                   str_cat("expected runs of ", document_count_, " documents, got ", documents));
  }
  return Status::ok();
}

Status PostingsView::check_documents() const {
  uint64_t total = 0;
  for (uint32_t document = 0; document < document_count_; ++document) total += length_of(document);
  if (total == total_length_) return Status::ok();
  return corrupt(24, str_cat("expected a total length of ", total, ", got ", total_length_));
}

Status PostingsView::check_terms() const {
  uint64_t offset = load<uint64_t>(offsets_, 0);
  if (offset != 0) return corrupt(64, "expected the first term's postings at 0");
  for (uint64_t term = 0; term < term_count_; ++term) {
    const uint64_t end = load<uint64_t>(offsets_, term + 1);
    const uint32_t count = load<uint32_t>(posting_counts_, term);
    if (end < offset || end > postings_.size() || count == 0 || count > document_count_ ||
        count > end - offset || (term > 0 && term_hash(term - 1) >= term_hash(term))) {
      return corrupt(64, str_cat("expected term ", term, " in order and within its bytes"));
    }
    offset = end;
  }
  if (offset == postings_.size()) return Status::ok();
  return corrupt(48, str_cat("expected ", offset, " posting bytes, got ", postings_.size()));
}

uint64_t PostingsView::term_hash(uint64_t term) const {
  return load<uint64_t>(hashes_, term);
}

PostingList PostingsView::term_postings(uint64_t term) const {
  const uint64_t start = load<uint64_t>(offsets_, term);
  const uint64_t end = load<uint64_t>(offsets_, term + 1);
  return {postings_.subspan(start, end - start), load<uint32_t>(posting_counts_, term),
          document_count_};
}

PostingList PostingsView::lookup(uint64_t hash) const {
  uint64_t first = 0, count = term_count_;
  while (count > 0) {
    const uint64_t half = count / 2;
    if (term_hash(first + half) < hash) {
      first += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  if (first == term_count_ || term_hash(first) != hash) return {};
  return term_postings(first);
}

BlockId PostingsView::block_of(uint32_t document) const {
  const auto after = std::upper_bound(
      runs_.begin(), runs_.end(), document,
      [](uint32_t wanted, const DocumentRun& run) { return wanted < run.first_document; });
  const DocumentRun& run = *(after - 1);
  return {run.partition, run.first_block + (document - run.first_document)};
}

uint32_t PostingsView::length_of(uint32_t document) const {
  return load<uint32_t>(lengths_, document);
}

std::pair<uint32_t, uint32_t> PostingsView::documents_of(uint32_t partition) const {
  const auto first = std::lower_bound(
      runs_.begin(), runs_.end(), partition,
      [](const DocumentRun& run, uint32_t wanted) { return run.partition < wanted; });
  const auto end = std::upper_bound(
      first, runs_.end(), partition,
      [](uint32_t wanted, const DocumentRun& run) { return wanted < run.partition; });
  if (first == end) return {0, 0};
  const DocumentRun& last = *(end - 1);
  return {first->first_document, last.first_document + last.document_count};
}

Status PostingsWriter::add_document(BlockId block, uint32_t length) {
  if (last_ && block <= *last_) {
    return Status::invalid_argument(str_cat(
        "[postings] blocks must come in increasing order, got partition ", block.partition,
        " block ", block.block, " after partition ", last_->partition, " block ", last_->block));
  }
  if (document_count_ == UINT32_MAX) {
    return Status::invalid_argument("[postings] documents must be fewer than 2^32");
  }
  const bool continues =
      last_ && last_->partition == block.partition && last_->block + 1 == block.block;
  if (!continues) runs_.push_back({block.partition, document_count_, 0, block.block});
  ++runs_.back().document_count;
  ++document_count_;
  total_length_ += length;
  lengths_.push_back(length);
  last_ = block;
  return Status::ok();
}

void PostingsWriter::add_term(uint64_t hash, std::span<const Posting> postings) {
  MC_ASSERT(!postings.empty() && (hashes_.empty() || hashes_.back() < hash));
  uint64_t next_document = 0;
  for (const Posting& posting : postings) {
    MC_ASSERT(posting.document >= next_document && posting.document < document_count_);
    append_varint(postings_, (posting.document - next_document) << 1 | (posting.count > 1));
    if (posting.count > 1) append_varint(postings_, posting.count);
    next_document = uint64_t{posting.document} + 1;
  }
  hashes_.push_back(hash);
  offsets_.push_back(postings_.size());
  posting_counts_.push_back(static_cast<uint32_t>(postings.size()));
}

std::string PostingsWriter::finish() const {
  Header header{};
  header.magic = kMagic;
  header.version = kPostingsVersion;
  header.analyzer = kAnalyzerVersion;
  header.total_length = total_length_;
  header.document_count = document_count_;
  header.run_count = static_cast<uint32_t>(runs_.size());
  header.term_count = hashes_.size();
  header.posting_bytes = postings_.size();
  header.total_bytes = UINT64_MAX;  // so that bytes_of() takes any count
  header.total_bytes = bytes_of(header);
  std::vector<EncodedRun> runs;
  for (const DocumentRun& run : runs_) {
    runs.push_back({run.partition, run.document_count, run.first_block});
  }
  std::string bytes(sizeof(Header), '\0');
  bytes.reserve(header.total_bytes);
  store(bytes, runs);
  store(bytes, lengths_);
  store(bytes, hashes_);
  store(bytes, offsets_);
  store(bytes, posting_counts_);
  bytes.append(postings_);
  MC_ASSERT(bytes.size() == header.total_bytes);
  header.body_crc = crc32c(std::as_bytes(std::span(bytes)).subspan(sizeof(Header)));
  header.header_crc = header_crc(header);
  std::memcpy(bytes.data(), &header, sizeof(header));
  return bytes;
}

}  // namespace mc
