// Writes files that are there whole or not at all.
//
// A regular file is written beside its place, and moved there when it is complete. So whoever opens it sees the old
// file or the new one, and after a failure or a kill the old one is as it was. On most file systems of Linux the new
// file has no name while it is written; when it is complete it is called PATH.<process>.part for the instant before the
// move. On other file systems it has this name all the while. So a kill leaves nothing, or this one file, which the
// next process of the same number that writes PATH removes. Devices and pipes cannot be replaced, and are written to
// directly.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <string>

namespace dualpipe {

// Whether the file is to survive a power failure right after it was written. File and folder are then flushed to the
// disk, which takes time.
enum class Durable : std::uint8_t { no, yes };

// Calls `write` with a stream for the file. Throws InputError that names the path and the system's reason; then no file
// is left or changed.
void write_output_file(const std::string& path, const std::function<void(std::ostream&)>& write,
                       Durable durable = Durable::no);

// Throws what write_output_file() would throw for a path that cannot be written. To be called before the work whose
// result is to go there.
void check_output_file(const std::string& path);

// Where a regular file, or a link to it, leads in the end, whether there is one or not yet: what write_output_file()
// replaces. Throws InputError for the name of an open file (/dev/stdout), which nothing can replace.
[[nodiscard]] std::filesystem::path target_of_output(const std::string& path);

// Calls `write`, and throws InputError, by which the stream is called `name`, if it could not take everything.
void write_checked(std::ostream& out, const std::string& name, const std::function<void(std::ostream&)>& write);

}  // namespace dualpipe
