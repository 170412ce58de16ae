package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process names one process for good: a PID alone may be handed out again.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // start time in clock ticks since boot, field 22 of proc(5) stat
}

// FindProcess returns the process that has that PID now.
func FindProcess(pid int) (Process, error) {
	_, start, err := stat(pid)
	return Process{PID: pid, Start: start}, err
}

// Alive tells whether the process still runs; one that has ended and was not yet reaped does not.
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	state, start, err := stat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// Kill sends SIGKILL if the process still runs.
func (p Process) Kill() error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.Alive() { // asked after the descriptor was opened, so it is this process that the signal reaches
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return nil
}

// stat reads state and start time from proc(5) stat.
func stat(pid int) (state byte, start uint64, err error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	return parseStat(string(data))
}

// parseStat takes the command's name off first, which may hold spaces and parentheses.
func parseStat(line string) (state byte, start uint64, err error) {
	_, rest, ok := cutLast(line, ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, 0, fmt.Errorf("parse process status %q: too few fields", line)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0][0], start, err
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// Residents returns the processes that live in the cgroup or below it, or in one of the named network namespaces. The
// calling process is never among them.
func Residents(cgroups Hierarchies, cgroup string, netns []string) ([]Process, error) {
	found := map[int]bool{}
	pids, err := cgroups.processes(cgroup)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		found[pid] = true
	}
	ours := map[string]bool{}
	for _, name := range netns {
		if inode, ok := netNSInode(name); ok {
			ours["net:["+strconv.FormatUint(inode, 10)+"]"] = true
		}
	}
	if len(ours) > 0 {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			if ns, err := os.Readlink("/proc/" + e.Name() + "/ns/net"); err == nil && ours[ns] {
				found[pid] = true
			}
		}
	}
	delete(found, os.Getpid())
	var out []Process
	for pid := range found {
		if p, err := FindProcess(pid); err == nil && p.Alive() {
			out = append(out, p)
		}
	}
	return out, nil
}

// KillAll kills what list returns until it returns nothing. It fails when ctx ends first.
func KillAll(ctx context.Context, list func() ([]Process, error)) error {
	for {
		processes, err := list()
		if err != nil {
			return err
		}
		if len(processes) == 0 {
			return nil
		}
		for _, p := range processes {
			if err := p.Kill(); err != nil {
				return err
			}
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("end process %d and %d others: %w", processes[0].PID, len(processes)-1, err)
		}
	}
}

// pause waits for d or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
