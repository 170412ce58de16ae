package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
)

// TargetAccess is the target of the access log.
const TargetAccess = "access"

// scopeKey is the attribute that names a line's target.
const scopeKey = "scope"

// LevelOff is above every level that is logged.
const LevelOff = slog.Level(math.MaxInt8)

// ParseLevel reads a log level: off, error, warn, info, debug or trace (which is debug).
func ParseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "off":
		return LevelOff, nil
	case "error", "critical":
		return slog.LevelError, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "info":
		return slog.LevelInfo, nil
	case "debug", "trace":
		return slog.LevelDebug, nil
	}
	return 0, fmt.Errorf("level %q is none of off, error, warn, info, debug, trace", s)
}

// levelName is the reverse of ParseLevel.
func levelName(l slog.Level) string {
	if l >= LevelOff {
		return "off"
	}
	return strings.ToLower(l.String())
}

// Directive sets the level of one target, or, where Target is empty, of those that have none of their own.
type Directive struct {
	Target string
	Level  slog.Level
}

// ParseFilter reads a list of directives as in RUST_LOG: "info", "access=debug,warn"; a colon may stand for the equals sign.
// Of a path such as ztunnel::proxy::inbound the part after the program's name is the target. "ztunnel=debug" is "debug".
func ParseFilter(s string) ([]Directive, error) {
	var out []Directive
	var errs []error
	for item := range strings.SplitSeq(s, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		target, text := "", item
		if at := strings.LastIndexAny(item, "=:"); at >= 0 {
			target, text = item[:at], item[at+1:]
		}
		level, err := ParseLevel(text)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		target = strings.TrimPrefix(target, "ztunnel::")
		target, _, _ = strings.Cut(target, "::")
		if target == "ztunnel" || target == "level" {
			target = ""
		}
		out = append(out, Directive{target, level})
	}
	return out, errors.Join(errs...)
}

// Levels are the log levels of a program's targets, which can be changed at any time. Its methods are safe for concurrent
// use.
type Levels struct {
	initial []Directive

	mu      sync.Mutex // guards what follows, but not the levels themselves
	other   slog.LevelVar
	targets map[string]*targetLevel
}

// targetLevel is the level of one target.
type targetLevel struct {
	slog.LevelVar
	own bool // not that of Levels.other
}

// NewLevels makes Levels for the targets, with initial directives; info where these say nothing.
func NewLevels(initial []Directive, targets ...string) *Levels {
	l := &Levels{initial: initial, targets: map[string]*targetLevel{}}
	for _, name := range targets {
		l.targets[name] = &targetLevel{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resetLocked()
	return l
}

// Unknown lists the targets of the directives that there are not.
func (l *Levels) Unknown(directives []Directive) []string {
	var out []string
	for _, d := range directives {
		if d.Target != "" && l.targets[d.Target] == nil {
			out = append(out, d.Target)
		}
	}
	return out
}

// Set adds directives to those in force, from the initial ones if reset. Directives for targets that there are not change
// nothing.
func (l *Levels) Set(reset bool, directives ...Directive) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if reset {
		l.resetLocked()
	}
	l.setLocked(directives)
}

func (l *Levels) resetLocked() {
	l.other.Set(slog.LevelInfo)
	for _, t := range l.targets {
		t.own = false
		t.LevelVar.Set(slog.LevelInfo)
	}
	l.setLocked(l.initial)
}

func (l *Levels) setLocked(directives []Directive) {
	for _, d := range directives {
		if d.Target == "" {
			l.other.Set(d.Level)
			for _, t := range l.targets {
				if !t.own {
					t.LevelVar.Set(d.Level)
				}
			}
		} else if t := l.targets[d.Target]; t != nil {
			t.own = true
			t.LevelVar.Set(d.Level)
		}
	}
}

// String is the filter in force, such as "access=warn,info".
func (l *Levels) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(l.targets)) {
		if t := l.targets[name]; t.own {
			parts = append(parts, name+"="+levelName(t.Level()))
		}
	}
	return strings.Join(append(parts, levelName(l.other.Level())), ",")
}

// Targets lists the targets, sorted.
func (l *Levels) Targets() []string { return slices.Sorted(maps.Keys(l.targets)) }

// Logger returns a logger over base for a target, whose level it obeys; that of base must let everything pass. A target
// that NewLevels was not told of has the level of all others.
func (l *Levels) Logger(base *slog.Logger, target string) *slog.Logger {
	var level slog.Leveler = &l.other
	if t := l.targets[target]; t != nil {
		level = t
	}
	return slog.New(&leveledHandler{base.With(scopeKey, target).Handler(), level})
}

// leveledHandler passes on what is at least at a level.
type leveledHandler struct {
	slog.Handler
	level slog.Leveler
}

func (h *leveledHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *leveledHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &leveledHandler{h.Handler.WithAttrs(attrs), h.level}
}

func (h *leveledHandler) WithGroup(name string) slog.Handler {
	return &leveledHandler{h.Handler.WithGroup(name), h.level}
}
