// Command ambit-cni is the CNI plugin that container runtimes call for every pod that starts.
package main

import "os"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }
