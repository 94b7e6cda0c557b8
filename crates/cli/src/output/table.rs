//! Tables: a line of headings, columns apart by two spaces. Plain, for terminals and pipes alike.

/// A table in the making.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, with a cell for each heading.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<_> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.headings.len(), "a cell for each heading");
        self.rows.push(cells);
    }

    /// The text, with a newline after each row. Columns of numbers are set to the right.
    pub(crate) fn text(&self) -> String {
        let columns = 0..self.headings.len();
        let widths: Vec<usize> = columns
            .clone()
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].chars().count());
                cells.max().unwrap_or(0).max(self.headings[column].len())
            })
            .collect();
        let is_right: Vec<bool> = columns
            .map(|column| {
                let is_number = |cell: &str| {
                    cell == "-" || cell.bytes().all(|b| b.is_ascii_digit() || b == b',')
                };
                let cells = self.rows.iter().map(|row| row[column].as_str());
                !self.rows.is_empty() && cells.into_iter().all(is_number)
            })
            .collect();

        let mut text = String::new();
        let headings = self
            .headings
            .iter()
            .map(|heading| (*heading).to_owned())
            .collect();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let space = " ".repeat(widths[column] - cell.chars().count());
                let gap = if column == 0 { "" } else { "  " };
                line.push_str(gap);
                if is_right[column] {
                    line.push_str(&space);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&space);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "RECORDS", "NOTE"]);
        table.row(["a".to_owned(), "1,000".to_owned(), String::new()]);
        table.row(["longer".to_owned(), "7".to_owned(), "x y".to_owned()]);
        assert_eq!(
            table.text(),
            "NAME    RECORDS  NOTE\na         1,000\nlonger        7  x y\n"
        );
    }

    #[test]
    fn without_rows_there_are_headings() {
        assert_eq!(Table::new(&["A", "B"]).text(), "A  B\n");
    }
}
