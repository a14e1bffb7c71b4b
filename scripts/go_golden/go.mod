module gogolden

go 1.19
