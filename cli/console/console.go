// Package console is how commands speak. Standard output carries the answer and nothing else, so that it can be piped;
// notes, progress and errors go to standard error. No colour, no cursor movement: a log file and a terminal read the same.
package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Exit codes of every command.
const (
	ExitOK = 0
	// ExitFailed: the command did what it could, and the answer is no: a check failed, a part did not become ready,
	// something is in the way.
	ExitFailed = 1
	// ExitUsage: the command line or a values file is wrong; nothing was done.
	ExitUsage = 2
	// ExitUnreachable: the cluster did not answer or does not let us in; nothing is known.
	ExitUnreachable = 3
)

// Console is the two streams of a command. Its methods may be called by one goroutine at a time.
type Console struct {
	Out io.Writer
	Err io.Writer
}

// Printf writes a line of the answer.
func (c Console) Printf(format string, args ...any) {
	fmt.Fprintf(c.Out, format+"\n", args...)
}

// Notef writes a line for the person who watches.
func (c Console) Notef(format string, args ...any) {
	fmt.Fprintf(c.Err, format+"\n", args...)
}

// Error carries the exit code that an error ends the command with. An error without one ends it with ExitFailed.
type Error struct {
	Code int
	Err  error
	// Told says that the console has shown the reason already, so that it is not repeated.
	Told bool
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Usagef is an error of the command line.
func Usagef(format string, args ...any) error {
	return &Error{Code: ExitUsage, Err: fmt.Errorf(format, args...)}
}

// Unreachable marks an error as one of reaching the cluster.
func Unreachable(err error) error { return &Error{Code: ExitUnreachable, Err: err} }

// ErrTold ends a command whose answer, already shown, is no.
var ErrTold = &Error{Code: ExitFailed, Err: errors.New("see above"), Told: true}

// Formats are the values of -o beside the empty one, which stands for text.
var Formats = []string{"json", "yaml"}

// CheckFormat tells whether a value of -o is known.
func CheckFormat(format string) error {
	if format == "" || slices.Contains(Formats, format) {
		return nil
	}
	return Usagef("-o %s: unknown format, use %s", format, strings.Join(Formats, " or "))
}

// Object writes a value as the answer, in one of Formats.
func (c Console) Object(format string, v any) error {
	if format == "yaml" {
		text, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = c.Out.Write(text)
		return err
	}
	enc := json.NewEncoder(c.Out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// Plural is "1 pod", "2 pods".
func Plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
