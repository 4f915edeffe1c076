// Files that are there whole or not at all.
//
// A regular file is written beside its place and moved there only when complete: whoever opens it sees the old one or
// the new one, and after a failure, or a kill, the old one is as it was. Where the file system can (most on Linux),
// what is being written has no name until it is complete; then, for the instant before the move, as elsewhere all the
// while, it is PATH.<process>.part. So a kill leaves nothing behind, or that one file, which is whole where it had no
// name before; the next process of that number that writes PATH removes it. Devices and pipes, which nothing can be
// moved to, are written to directly.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <string>

namespace dualpipe {

// Whether a result outlives a power failure right after it was written: its file and folder are then flushed to the
// disk, which takes its time.
enum class Durable : std::uint8_t { no, yes };

// Calls `write` with a stream for the file. Throws InputError that names the path and the system's reason; then no file
// is left or changed.
void write_output_file(const std::string& path, const std::function<void(std::ostream&)>& write,
                       Durable durable = Durable::no);

// Throws what write_output_file() would throw for a path that cannot be written, before the work whose result goes
// there.
void check_output_file(const std::string& path);

// Where a regular file, or a link to it, leads in the end, whether there is one or not yet: what write_output_file()
// replaces. Throws InputError for the name of an open file (/dev/stdout), which nothing can replace.
[[nodiscard]] std::filesystem::path target_of_output(const std::string& path);

// Calls `write`, and throws InputError, by which the stream is called `name`, if it could not take everything.
void write_checked(std::ostream& out, const std::string& name, const std::function<void(std::ostream&)>& write);

}  // namespace dualpipe
