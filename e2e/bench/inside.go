package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
)

// Inside does what a program is asked to that Run has started again within a pod, by its arguments. It returns false if they
// are something else.
func Inside(ctx context.Context, args []string, stdout io.Writer) (bool, error) {
	if len(args) == 0 {
		return false, nil
	}
	switch args[0] {
	case "serve":
		return true, Serve(ctx)
	case "forward":
		return true, Forward(ctx, args[1])
	case "load":
		return true, load(ctx, args[1], args[2], stdout)
	}
	return false, nil
}

func load(ctx context.Context, spec, host string, stdout io.Writer) error {
	var l Load
	if err := json.Unmarshal([]byte(spec), &l); err != nil {
		return fmt.Errorf("read load: %w", err)
	}
	result, err := l.Run(ctx, host, func() { fmt.Fprintln(stdout, "held") })
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(result)
}
