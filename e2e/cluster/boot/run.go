package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// path is what Debian gives root; the mesh's agents and the kubelet look for iptables and mount here.
	path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

	// restartAfter is how long a service that ended stays down.
	restartAfter = 500 * time.Millisecond

	// openFiles is how many files services and pods may have open where the machine allows it: what Linux distributions give
	// container runtimes.
	openFiles = 1 << 20

	// askEvery is how often an address of Service.After is tried.
	askEvery = 50 * time.Millisecond
)

// Run makes the machine and keeps its services running. It returns only when the machine cannot be made; otherwise the
// process ends by SIGKILL from outside.
//
// The caller must be process 1 of a PID namespace, in mount, UTS and network namespaces of its own.
func Run(ctx context.Context, s Spec, log io.Writer) error {
	if os.Getpid() != 1 {
		return errors.New("boot: not process 1 of a PID namespace")
	}
	for _, dir := range s.Cgroups {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup %s: %w", dir, err)
		}
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := mountAll(s); err != nil {
		return err
	}
	if err := raiseOpenFiles(); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	fmt.Fprintf(log, "%s: %s is up, %d services\n", now(), s.Hostname, len(s.Services))

	r := &reaper{ended: map[int]chan string{}}
	var services sync.WaitGroup
	for _, svc := range s.Services {
		services.Go(func() { keepRunning(ctx, svc, r, log) })
	}
	r.run() // never returns: services never end for good
	services.Wait()
	return nil
}

func now() string { return time.Now().UTC().Format(time.RFC3339Nano) }

// raiseOpenFiles raises the limit as far as this process may: what started it may have been a user's shell.
func raiseOpenFiles() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if limit.Max < openFiles && syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: openFiles, Max: openFiles}) == nil {
		return nil
	}
	// By package syscall: only what it sets is passed on to children.
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit.Max, Max: limit.Max})
}

// mountAll gives the machine its own view of the file system.
func mountAll(s Spec) error {
	steps := []struct {
		what string
		do   func() error
	}{
		{"make / private", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		// A name of a network namespace that is still mounted here would keep it alive after it was removed outside.
		{"forget names of network namespaces", forgetNetNS},
		{"mount /proc", func() error { return unix.Mount("proc", "/proc", "proc", 0, "") }},
		{"mount /run", func() error { return unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755") }},
		{"mount /sys", mountSys},
		{"make /run/netns", func() error { return os.MkdirAll("/run/netns", 0o755) }},
		{"make /run/lock", func() error { return os.MkdirAll("/run/lock", 0o1777) }},
	}
	for _, b := range s.Dirs {
		steps = append(steps, struct {
			what string
			do   func() error
		}{"bind " + b.To, func() error { return unix.Mount(b.From, b.To, "", unix.MS_BIND, "") }})
	}
	for i, f := range s.Files {
		steps = append(steps, struct {
			what string
			do   func() error
		}{"bind " + f.To, func() error { return bindFile(i, f) }})
	}
	// Last: pods' network namespaces and volumes appear in containers that asked for propagation.
	steps = append(steps, struct {
		what string
		do   func() error
	}{"make / shared", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") }})
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// mountSys shows the machine's own network in /sys/class/net, and keeps the machine-wide cgroups where they were.
func mountSys() error {
	const keep = "/run/cgroup"
	if err := os.Mkdir(keep, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/sys/fs/cgroup", keep, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return err
	}
	if err := unix.Mount(keep, "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Unmount(keep, unix.MNT_DETACH); err != nil {
		return err
	}
	return os.Remove(keep)
}

func forgetNetNS() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.Contains(line, " - nsfs ") {
			continue
		}
		err := unix.Unmount(fields[4], unix.MNT_DETACH)
		// Whoever removes such a name outside unmounts it here too, at any moment: then the file, or the mount, is gone.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%s: %w", fields[4], err)
		}
	}
	return nil
}

func bindFile(i int, f File) error {
	if _, err := os.Stat(f.To); err != nil {
		return nil // nothing on this machine reads it
	}
	from := fmt.Sprintf("/run/.file%d", i)
	if err := os.WriteFile(from, []byte(f.Content), 0o444); err != nil {
		return err
	}
	return unix.Mount(from, f.To, "", unix.MS_BIND, "")
}

// keepRunning starts the service again whenever it ends.
func keepRunning(ctx context.Context, svc Service, r *reaper, log io.Writer) {
	for {
		for _, address := range svc.After {
			await(ctx, address)
		}
		ended, err := r.start(svc)
		if err != nil {
			fmt.Fprintf(log, "%s: %s: %v\n", now(), svc.Name, err)
		} else {
			fmt.Fprintf(log, "%s: %s: started\n", now(), svc.Name)
			fmt.Fprintf(log, "%s: %s: %s\n", now(), svc.Name, <-ended)
		}
		time.Sleep(restartAfter)
	}
}

// await returns once the address takes connections.
func await(ctx context.Context, address string) {
	network, where, _ := strings.Cut(address, ":")
	d := net.Dialer{Timeout: time.Second}
	for {
		conn, err := d.DialContext(ctx, network, where)
		if err == nil {
			conn.Close()
			return
		}
		time.Sleep(askEvery)
	}
}

// reaper waits for every process that ends in the machine, services and orphans alike.
type reaper struct {
	mu    sync.Mutex // guards ended, and is held from fork to entry so that no service can end unnoticed
	ended map[int]chan string
}

func (r *reaper) start(svc Service) (<-chan string, error) {
	if err := os.MkdirAll(filepath.Dir(svc.Log), 0o755); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(svc.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(svc.Args[0], svc.Args[1:]...)
	cmd.Env = append([]string{path, "HOME=/root"}, svc.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}

	r.mu.Lock()
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ch := make(chan string, 1)
	r.ended[cmd.Process.Pid] = ch
	return ch, nil
}

func (r *reaper) run() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			time.Sleep(askEvery) // no child at the moment
		default:
			r.mu.Lock()
			if ch, ok := r.ended[pid]; ok {
				delete(r.ended, pid)
				ch <- describe(status)
			}
			r.mu.Unlock()
		}
	}
}

func describe(s unix.WaitStatus) string {
	if s.Signaled() {
		return "ended by signal " + s.Signal().String()
	}
	return fmt.Sprintf("ended with exit code %d", s.ExitStatus())
}
