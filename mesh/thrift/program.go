package thrift

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Program takes the pages of the program's own file out of the process's memory, until they are needed again: most of what was touched
// by then is what only starting needs, such as the tables of protocol buffers, and what lies beside it. They stay in the kernel's
// cache of files, so that having one again costs a page fault. It is for the moment when a program has started.
func Program() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("let go of the program's pages: %w", err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("let go of the program's pages: %w", err)
	}
	defer f.Close()
	var m mapping
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		if next, ok := parseMapping(line); ok {
			m = next
			continue
		}
		// Pages of a mapping's own, such as those of which something was changed, would be lost.
		if name, value, _ := strings.Cut(line, ":"); name != "Anonymous" || strings.TrimSpace(value) != "0 kB" || m.path != exe || m.writable {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("let go of the program's pages: madvise: %w", errno)
		}
	}
	return lines.Err()
}

// mapping is a part of the process's memory, as the first line about it in /proc/self/smaps says.
type mapping struct {
	from, to uintptr
	writable bool
	path     string
}

func parseMapping(line string) (m mapping, ok bool) {
	var mode, offset, device, inode string
	n, err := fmt.Sscanf(line, "%x-%x %s %s %s %s", &m.from, &m.to, &mode, &offset, &device, &inode)
	if err != nil || n != 6 || len(mode) != 4 {
		return mapping{}, false
	}
	if _, path, found := strings.Cut(line, "/"); found {
		m.path = "/" + path
	}
	m.writable = mode[1] == 'w'
	return m, true
}
