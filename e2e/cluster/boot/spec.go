package boot

import (
	"encoding/json"
	"fmt"
	"os"
)

// Spec describes one machine.
type Spec struct {
	Hostname string

	// Cgroups are folders of cgroups, one per hierarchy, that the init and with it every service joins first.
	Cgroups []string

	// Dirs are the machine's own folders: each is bound over the path that it is the key's value for. Both sides must
	// exist.
	Dirs []Bind

	// Files are written below the machine's fresh /run and bound over existing files, such as the machine's own boot ID.
	Files []File

	Services []Service
}

// Bind shows From at the path To.
type Bind struct{ From, To string }

// File shows Content at the path To, if there is a file of that name.
type File struct{ To, Content string }

// Service is a program that always runs.
type Service struct {
	Name string
	Args []string // the first is the absolute path of the program
	Env  []string // added to the machine's PATH
	Log  string   // file that its output is added to

	// After are addresses ("unix:/path" or "tcp:host:port") that must take connections before the service is started.
	// It may be empty.
	After []string
}

// ReadSpec reads a Spec from a JSON file.
func ReadSpec(path string) (Spec, error) {
	var s Spec
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read machine %s: %w", path, err)
	}
	return s, nil
}
