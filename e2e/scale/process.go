package scale

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopGrace is how long a process may take to end by itself once it is asked to.
const stopGrace = 60 * time.Second

// process is a program that was started here. It ends with this process, however that ends.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string        // file of what it says
	done chan struct{} // closed once it has ended
	err  error         // why, once done is closed
}

// start starts a program, whose standard error (and output, unless stdout is given) goes into the file log. Without env it has this
// process's environment.
func start(name, log string, env []string, stdin io.Reader, stdout io.Writer, program string, args ...string) (*process, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer file.Close() // the process has its own descriptor
	p := &process{name: name, log: log, cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Env, p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = env, stdin, stdout, file
	if stdout == nil {
		p.cmd.Stdout = file
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true} // an interrupt is for us alone
	started := make(chan error)
	go func() {
		// The death signal comes when the thread ends that started the process, so that thread waits for it.
		runtime.LockOSThread()
		if err := p.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// stop asks the process to end, kills it if it does not, and returns once it is gone. It may be called more than once.
func (p *process) stop() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended just now
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case <-p.done:
		return nil
	case <-grace.C:
		p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("stop %s: it did not end within %s and was killed", p.name, stopGrace)
	}
}

// ended says that the process has ended before it was asked to, and shows the end of its log.
func (p *process) ended() error {
	const shown = 2000
	text, err := os.ReadFile(p.log)
	if err != nil {
		return fmt.Errorf("%s ended: %w", p.name, errors.Join(p.err, err))
	}
	return fmt.Errorf("%s ended: %v; it said:\n%s", p.name, p.err, text[max(0, len(text)-shown):])
}

// await asks until ok says yes, for at most limit, or until the process ends. The last error of ok is the cause if it never does.
func (p *process) await(ctx context.Context, what string, limit time.Duration, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return p.ended()
		case <-ctx.Done():
			return fmt.Errorf("wait until %s %s: %w: %w", p.name, what, context.Cause(ctx), err)
		}
	}
}

// usage is what a process has used.
type usage struct {
	cpu       time.Duration
	rss, peak uint64 // bytes; peak since the start or resetPeak
}

// ticksPerSecond is USER_HZ, the unit of times in /proc/PID/stat: 100 on every Linux that Go runs on.
const ticksPerSecond = 100

func (p *process) usage() (usage, error) {
	var u usage
	proc := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	stat, err := os.ReadFile(proc + "stat")
	if err != nil {
		return usage{}, fmt.Errorf("read what %s uses: %w", p.name, err)
	}
	// Fields count from behind the command name, which may hold blanks: utime and stime are fields 14 and 15.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, f := range fields[11:13] {
		ticks, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return usage{}, fmt.Errorf("read what %s uses: %w", p.name, err)
		}
		u.cpu += time.Duration(ticks) * time.Second / ticksPerSecond
	}
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return usage{}, fmt.Errorf("read what %s uses: %w", p.name, err)
	}
	for key, to := range map[string]*uint64{"VmRSS:": &u.rss, "VmHWM:": &u.peak} {
		_, rest, _ := strings.Cut(string(status), key)
		line, _, _ := strings.Cut(rest, "\n")
		kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(line, "kB")), 10, 64)
		if err != nil {
			return usage{}, fmt.Errorf("read what %s uses: %s %w", p.name, key, err)
		}
		*to = kib << 10
	}
	return u, nil
}

// resetPeak makes the peak of the resident size that of now (proc(5), clear_refs).
func (p *process) resetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0)
}

// freePort returns a loopback address that nobody listened on a moment ago.
func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return ln.Addr().String(), ln.Close()
}

// lockFile takes the lock of a path, or says that another process has it. Its release lets it go.
func lockFile(path string) (release func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: another run has it: %w", path, err), f.Close())
	}
	return f.Close, nil
}
